"""The plans of a basis of adapters, and of an adapter that is rebuilt from one.

A stage reads the files of adapters whole, so each is counted as a whole process, as a merge is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from rlhf_lines.errors import about, counted
from rlhf_lines.merge.basis import BASIS_FILE, check_dtype, check_saves, components_of, stored_dtype
from rlhf_lines.merge.basis_config import BasisConfig, RebuildConfig
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE, load_adapter
from rlhf_lines.merge.lora.truncate import check_rank
from rlhf_lines.merge.output.summary import ranks_text
from rlhf_lines.merge.rebuild import basis_record, taken_policies
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.plan import memory
from rlhf_lines.plan.adapters import adapter_sizes, stacked
from rlhf_lines.plan.config import of_type
from rlhf_lines.plan.plan import Options, Plan
from rlhf_lines.plan.shapes import find_shape


def plan_basis(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of a basis: adapters, the fit of the largest module, the basis."""
    config = of_type(configs, BasisConfig)
    check_dtype(config.dtype)
    shape = find_shape(config.sft_model, beside=beside, base_model=options.base_model, what="SFT model")
    adapters = [adapter_sizes(policy, shape, beside) for policy in config.policies]
    for policy, adapter in zip(config.policies, adapters, strict=True):
        if adapter.count is None:
            load_adapter(policy)  # which says what is missing
    ranks = [adapter.rank for adapter in adapters]
    count, rank, positions = len(adapters), max(ranks), stacked(adapters, 1)
    numbers = sum(adapter.count for adapter in adapters)
    components = components_of(config.components, ranks, numbers=numbers, positions=positions)
    files = [Path(policy) / WEIGHTS_FILE for policy in config.policies]
    here = all(file.is_file() for file in files)
    stored = stored_dtype([file.parent for file in files]) if here else torch.float32
    dtype = DTYPES[config.dtype] if config.dtype else stored
    written = positions * memory.basis_numbers(rank, count, components) * dtype.itemsize
    read = {str(file): file.stat().st_size for file in files} if here else {}
    if here:
        check_saves(components, dtype, written, sum(read.values()))

    plan = Plan("basis", "cpu", numbers, read=read)
    plan.models.append((config.sft_model, shape.source))
    plan.models += [(policy, adapter.source) for policy, adapter in zip(config.policies, adapters, strict=True)]
    plan.work += [
        ("components", f"{components}, of {counted(count, 'policy', 'policies')} of {ranks_text(ranks)}"),
        ("positions", f"{positions:,}, each of {memory.basis_numbers(rank, count, components):,} numbers"),
        ("written dtype", str(dtype).removeprefix("torch.")),
    ]
    widest = max((side for adapter in adapters for side in adapter.sides.values()), key=sum)
    held = {
        memory.LIBRARIES_PART: memory.MERGE_LIBRARIES["dense"],
        "adapters": numbers * memory.FLOAT32,
        "basis": written,
    }
    rebuilt = {"one policy, rebuilt": positions * rank * memory.FLOAT64}
    plan.phases += [
        memory.Phase("fit", {**held, "one module": memory.fit_bytes(widest, count, rank, components)}),
        memory.Phase("losses", held | rebuilt),
        memory.Phase("writing", {**held, "copies in the order of the file": written}),
    ]
    plan.disk[BASIS_FILE] = written
    return plan


def plan_rebuild(configs: dict, given: dict, beside: Path | None, options: Options) -> Plan:
    """The plan of an adapter that is rebuilt: the basis, the policies that are taken, and what they make."""
    config = of_type(configs, RebuildConfig)
    check_dtype(config.dtype)
    file = Path(config.basis) / BASIS_FILE
    if config.rank is not None:
        check_rank(config.rank)
    record = basis_record(config.basis)
    taken = taken_policies(config, record)
    with about(f"basis {file} cannot be read"), safe_open(file, framework="pt") as opened:
        means = {name: opened.get_slice(name).get_shape() for name in opened.keys() if name.endswith(".mean")}  # noqa: SIM118 (not a mapping)
    positions, rank = sum(shape[0] for shape in means.values()), record["rank"]
    total = len(taken) * rank
    size = file.stat().st_size
    dtype = DTYPES[config.dtype] if config.dtype else torch.float32
    written = positions * (config.rank or total) * dtype.itemsize

    plan = Plan("rebuild", "cpu", positions * (config.rank or total), read={str(file): size})
    plan.models.append(
        (config.basis, f"{counted(len(record['policies']), 'policy', 'policies')} of {record['sft_model']}")
    )
    plan.work += [
        ("policies", ", ".join(record["policies"][k]["path"] for k in taken)),
        ("rank of the adapter", str(config.rank or total)),
    ]
    if config.rank is not None:
        plan.work.append(("truncated to rank", f"{config.rank}, from {total}; what that loses is told"))
    whole = positions * total * memory.FLOAT32
    before, with_peft = (memory.MERGE_LIBRARIES[save] for save in ("dense", "adapter"))  # PEFT is imported to write
    held = {"basis": size, "policies": whole}
    merged = {"merged adapter": positions * (config.rank or total) * memory.FLOAT32}
    cast = {} if dtype == torch.float32 else {"cast": written}
    plan.phases += [
        memory.Phase("merge", {memory.LIBRARIES_PART: before, **held, "stacked": whole, "scaled": whole // 2}),
        memory.Phase("writing", {memory.LIBRARIES_PART: with_peft, **held, **merged, **cast}),
    ]
    plan.disk["rebuilt adapter"] = written
    plan.notes += config.without_effect
    return plan
