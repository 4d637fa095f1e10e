"""The command `rlhf-lines`: a verb, then `--config FILE` and `--flag value`.

Exit status: 0 done; 2 the input is wrong (one sentence on stderr); 1 anything else; 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_lines import distributed
from rlhf_lines.arguments import Gather, accept_negative_numbers, bare_switches, check_unknown, holds_nul
from rlhf_lines.artifact import RECORD, read_record, refuse_existing
from rlhf_lines.disk import KEPT_FOR_RESUME, NOTHING_KEPT, disk_fault
from rlhf_lines.errors import counted, is_about_input, is_of_machine, is_of_memory, reason, unknown_name
from rlhf_lines.redaction import guard, redact
from rlhf_lines.stages import MODULES, read_stage, refuse_taken, run_configured


RUN_STORE = "run.sqlite"
CHECK = "--check"
VERBS = {
    "demo": "the whole pipeline on a tiny model, without network or weights",
    "configs": "a copy of the configs that come with this: of the demo, of 7B models, and of accelerate",
    "sft": "supervised fine-tuning, with LoRA merged into a dense checkpoint",
    "reward": "a reward model from preference pairs; with --check, what rewards say of held-out pairs",
    "ppo": "a LoRA policy from the SFT model against reward models",
    "fisher": "the diagonal Fisher of a policy over its own samples, for the merge rules fisher and ota",
    "gram": "the Gram matrices of a policy's linear maps, for the merge rule regmean",
    "merge": "policies into one, with LiNeS, as an adapter or a dense checkpoint",
    "basis": "many adapters of one SFT model in one basis, which takes fewer bytes",
    "rebuild": "a policy or a mix from a basis, as an adapter",
    "sweep": "merge, sample and score many weights, and trace the fronts",
    "learn": "factors by policy and layer from the rewards themselves, for the merge rule layerwise",
    "router": "which merge for which prompt, from the validation completions of a sweep, for a group of sweeps",
    "front": "the front of a finished sweep, computed again from its run store",
    "pick": "the best point of a front for a preference, with the command that merges it",
    "report": "a finished sweep as one HTML page: fronts, completions side by side, tables",
    "compare": "finished sweeps beside each other: the same over training seeds, or two recipes; or runs of learn",
    "score": "scores of further reward models for the completions of a finished sweep",
    "evaluate": "public benchmarks (lm-eval) for points of a finished sweep, on the one loaded base",
    "export": "the completions, scores and points of a finished sweep as Parquet or CSV, or its points as adapters",
    "serve": "the mixes of a finished sweep by vLLM's server, with a preference per request",
    "plan": "what a stage will take: parameters, memory, tokens, time, disk; loads no weights",
}
SCALES = ("raw", "range")  # of pick; its module is not imported to read a command line
WITHOUT_BARS = ("merge", "basis", "rebuild")  # they load no model and no data, and are done before those are imported
# What a command that was interrupted has left.
KEPT = {
    "score": "the scores so far are kept",
    "evaluate": "the results so far are kept, and the same command goes on",
    **dict.fromkeys(("sft", "reward", "ppo", "sweep", "learn"), KEPT_FOR_RESUME),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 shows \\u03b1 for a letter it does not have
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _say(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from rlhf_lines import __version__

        _say(__version__)
        return 0
    # Read when torch is first imported. Threads that wait for each other then sleep instead of spinning: with another
    # program on the cores, spinning makes training several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        guard(arguments)
        _run(arguments)
    except KeyboardInterrupt as interrupt:
        return _tell(arguments[0], f"interrupted; {_left(interrupt, arguments[0])}", 130)
    except Exception as error:
        if (fault := disk_fault(error)) is not None:
            return _tell(arguments[0], str(fault), 2 if is_about_input(fault) else 1)
        if is_about_input(error):
            return _tell(arguments[0], reason(error) if getattr(error, "errno", None) else str(error), 2)
        if is_of_machine(error):
            return _tell(arguments[0], _of_machine(error, _left(error, arguments[0])), 1)
        raise
    finally:
        distributed.leave()
    return 0


def _tell(verb: str, sentence: str, status: int) -> int:
    told = redact(f"rlhf-lines {verb}: {sentence}")
    distributed.say_once(told, lambda: print(told, file=sys.stderr))
    return status


def _left(error: BaseException, verb: str) -> str:
    """What a command that did not come to its end has left; a stage that knows better has said so in the error."""
    return getattr(error, "kept", None) or KEPT.get(verb, NOTHING_KEPT)


def _of_machine(error: Exception, left: str) -> str:
    if is_of_memory(error):
        return (
            f"memory ran out ({reason(error)}): take smaller batches or a smaller model; rlhf-lines plan says what a "
            "stage will take"
        )
    return f"{reason(error)}; {left}"


def _say(*texts: object) -> None:
    """Print; a reader who has closed the pipe, as `head` does, has seen enough."""
    try:
        print(*(redact(str(text)) for text in texts), sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends


def _run(arguments: list[str]) -> None:
    verb, *others = arguments
    for argument in filter(holds_nul, arguments):  # a shell cannot say it, Python can
        raise ValueError(f"{argument!r} holds the character NUL, which no path and no name can: leave it out")
    if verb not in VERBS:
        raise ValueError(unknown_name("command", verb, VERBS))
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ValueError("the current folder was deleted: change into one that exists (cd)") from error
    if verb == "plan" and others and not others[0].startswith("-"):  # plan ppo --rewards ... is plan --stage ppo ...
        others[:1] = ["--stage", others[0]]
    if verb == "reward":
        others = bare_switches(others, [CHECK])
        if CHECK in others:
            _check_rewards([other for other in others if other != CHECK])
            return
    options, options.rest = _parser().parse_known_args([verb, *others])
    if options.run not in (_stage, _plan):
        check_unknown(options.rest, options.flags, f"rlhf-lines {verb}")
    options.run(options)


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        accept_negative_numbers(self)
        self.register("action", None, Gather)

    def add_argument(self, *names, **settings):
        dashed = [name.replace("_", "-") for name in names if name.startswith("--") and "_" in name]
        return super().add_argument(*names, *dashed, **settings)

    def parse_known_args(self, args=None, namespace=None):
        switches = {
            name
            for name, action in self._option_string_actions.items()
            if isinstance(action, argparse._StoreTrueAction)
        }
        return super().parse_known_args(bare_switches(args, switches), namespace)

    def error(self, message: str):
        raise ValueError(f"{message}; see {self.prog} --help")


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty, expected a path")
    return text


def _parser() -> argparse.ArgumentParser:
    """The parser of all verbs; a stage's own, from its dataclasses, takes what this one leaves."""
    parser = _Parser(prog="rlhf-lines")
    verbs = parser.add_subparsers(dest="verb")

    def add(verb: str, run: Callable[[argparse.Namespace], None], **settings) -> argparse.ArgumentParser:
        added = verbs.add_parser(verb, **{"description": VERBS[verb], **settings})
        added.set_defaults(run=run, flags=added._option_string_actions)
        return added

    demo = add("demo", _demo)
    demo.add_argument(
        "--output_dir", type=_path, default="outputs/demo", help="folder of the demo (default: %(default)s)"
    )
    demo.add_argument(
        "--config_dir", type=_path, help="folder of base.yaml ... sweep.yaml, to change the demo's settings"
    )

    configs = add("configs", _configs)
    configs.add_argument(
        "folder", metavar="DIR", type=_path, nargs="?", default="configs", help="folder to make (default: %(default)s)"
    )

    for verb in MODULES:
        add(verb, _stage, add_help=False)

    a_run = argparse.ArgumentParser(add_help=False)
    a_run.add_argument("run_dir", metavar="RUN_DIR", type=_path, help="folder of a finished sweep")
    front = add("front", _front, parents=[a_run])
    front.add_argument(
        "--objectives", nargs="+", metavar="NAME", help="scores that fronts are made of from now on; others are metrics"
    )
    front.add_argument(
        "--reference_point",
        nargs="+",
        metavar="X",
        help="from where hypervolumes are measured from now on, a number per objective; anchors: by the rule",
    )
    front.add_argument("--all", action="store_true", help="print all points with all that was measured of them")
    add("report", _report, parents=[a_run], description=f"{VERBS['report']}; report.html is written into RUN_DIR")

    pick = add(
        "pick",
        _pick,
        parents=[a_run],
        usage="rlhf-lines pick RUN_DIR --preference W W ... [--scale raw|range] [--group NAME] [--max-kl NATS]\n"
        "       rlhf-lines pick RUN_DIR --min|--max NAME=SCORE ... --maximize|--minimize NAME [--group NAME]\n"
        "                       [--max-kl NATS]\n"
        "       rlhf-lines pick RUN_DIR --point ID",
        description=f"{VERBS['pick']}. Points of all groups but the controls are looked at; no model is loaded.",
    )
    pick.add_argument(
        "--preference", type=float, nargs="+", metavar="W", help="how much each objective counts, in the front's order"
    )
    pick.add_argument(
        "--scale",
        choices=SCALES,
        help="of the scores that are weighed; range: 0 at the reference point, 1 at the ideal point",
    )
    pick.add_argument(
        "--min",
        nargs="+",
        metavar="NAME=SCORE",
        help="lowest mean of some scores or metrics, as front.json names them (share_cut is what tables call cut), "
        "of kl, or of perplexity",
    )
    pick.add_argument("--max", nargs="+", metavar="NAME=SCORE", help="highest mean, likewise")
    pick.add_argument("--maximize", metavar="NAME", help="what is to be highest then")
    pick.add_argument("--minimize", metavar="NAME", help="what is to be lowest then, such as share_cut or kl")
    pick.add_argument(
        "--group",
        metavar="NAME",
        help="look at the points of one group only: lines (LiNeS), rewarded_soup, scaled (even scaling), reversed "
        "(reversed LiNeS), morlhf, sft, or one of your own",
    )
    pick.add_argument("--max_kl", type=float, metavar="NATS", help="look at points within this KL to the SFT model")
    pick.add_argument("--point", type=int, metavar="ID", help="the point of this id, whatever it is worth")

    compare = add(
        "compare",
        _compare,
        usage="rlhf-lines compare RUN_DIR RUN_DIR ... [--against RUN_DIR ...] [--output_dir DIR]",
        description=f"{VERBS['compare']}. The first runs are replicates: every difference between groups, and its mean "
        "over runs. With --against, each group of theirs less the same group of the other recipe's. Of runs of learn: "
        "the factors by depth, with their spread over seeds, and what they are worth.",
    )
    compare.add_argument(
        "run_dirs", metavar="RUN_DIR", nargs="+", help="folders of finished sweeps, one per training seed, or of learn"
    )
    compare.add_argument("--against", metavar="RUN_DIR", nargs="+", default=[], help="those of another recipe")
    compare.add_argument("--output_dir", default="comparison", help="folder to make (default: %(default)s)")
    compare.add_argument(
        "--reference_point", type=float, nargs="+", metavar="SCORE", help="of the hypervolume (default: from the runs)"
    )
    compare.add_argument("--overwrite", action="store_true", help="replace the folder")

    score = add("score", _score, parents=[a_run])
    score.add_argument("--rewards", nargs="+", required=True, help="reward models, as in the config of a sweep")
    score.add_argument("--as_objectives", action="store_true", help="make fronts of these scores too")
    score.add_argument("--batch_size", type=int, default=32, help="texts in one forward pass (default: %(default)s)")

    evaluate = add("evaluate", _evaluate, parents=[a_run])
    evaluate.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="tasks, groups of tasks or tags of lm-eval, with commas or blanks between them",
    )
    evaluate.add_argument(
        "--points",
        nargs="+",
        default=["front"],
        metavar="WHICH",
        help="front: what no other point of its group dominates, controls left out; all; or ids; the SFT model is "
        "always asked (default: front)",
    )
    evaluate.add_argument("--group", nargs="+", default=[], metavar="NAME", help="points of these groups only")
    evaluate.add_argument("--limit", type=int, metavar="N", help="documents of each task, the first (default: all)")
    evaluate.add_argument(
        "--num_fewshot", type=int, metavar="N", help="examples before each question (default: as the task says)"
    )
    evaluate.add_argument(
        "--apply_chat_template", action="store_true", help="put questions into the tokenizer's chat template"
    )
    evaluate.add_argument(
        "--system_instruction", metavar="TEXT", help="what comes first; in the chat template the system's turn"
    )
    evaluate.add_argument("--include_path", type=_path, metavar="DIR", help="folder of further task configs (YAML)")
    evaluate.add_argument("--batch_size", type=int, metavar="N", help="texts in one pass (default: what fits)")
    evaluate.add_argument(
        "--overwrite", action="store_true", help="ask these tasks anew, and forget what they found of any point"
    )

    export = add("export", _export, parents=[a_run])
    export.add_argument("--format", help="of the tables: parquet, csv or both (default: parquet)")
    export.add_argument(
        "--adapters",
        metavar="GROUP",
        nargs="?",
        const="lines",
        help="in place of tables, every point of a group as an adapter (without a name: of LiNeS)",
    )
    export.add_argument(
        "--output_dir", type=_path, help="where to write (default: RUN_DIR/export, of adapters RUN_DIR/export/adapters)"
    )
    export.add_argument("--overwrite", action="store_true", help="replace what is there")

    serve = add(
        "serve",
        _serve,
        parents=[a_run],
        description=f"{VERBS['serve']}. A request names a mix in place of a model: mix/helpful=0.3,harmless=0.7 gives "
        "the policies weights, mix/preference=0.7,0.3 asks for the point that pick gives. It is made when it is first "
        "asked for.",
    )
    serve.add_argument(
        "--group", metavar="NAME", default="lines", help="whose policies are mixed, scaled as it is (default: LiNeS)"
    )
    serve.add_argument(
        "--scale",
        choices=SCALES,
        default="raw",
        help="of the scores that mix/preference weighs, as pick has it (default: %(default)s)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    serve.add_argument(
        "--max_mixes", type=int, default=64, metavar="N", help="mixes that are known at once (default: %(default)s)"
    )
    serve.add_argument(
        "--max_disk", default="20GB", metavar="SIZE", help="what mixes may take of the disk (default: %(default)s)"
    )
    serve.add_argument("--cache_dir", type=_path, help="where mixes are kept (default: RUN_DIR/mixes)")
    serve.add_argument("--dtype", help="of the model and of mixes (default: that of the sweep)")
    serve.add_argument(
        "--api_key_env", metavar="VARIABLE", help="the environment variable with the API key that requests must have"
    )
    serve.add_argument(
        "--vllm", metavar="JSON", help="further arguments of vllm serve, as in a sweep: '{\"tensor_parallel_size\": 2}'"
    )

    plan = add(
        "plan",
        _plan,
        usage="rlhf-lines plan [STAGE] [--config FILE] [--flag value ...]",
        description=f"{VERBS['plan']}. STAGE is sft, reward, ppo, merge, basis, rebuild, sweep or learn, and may be "
        "left out where only one has the keys of the config. Flags of the stage itself change the config, as they do "
        "when it runs.",
    )
    plan.add_argument("--config", metavar="FILE", type=_path, help="the config of a stage; flags alone will do")
    plan.add_argument("--stage", help="the same as STAGE")
    plan.add_argument(
        "--base_model", type=_path, help="folder or Hub id of the shape of a model that does not exist yet"
    )
    plan.add_argument("--prompt_tokens", type=int, help="the longest prompt (of sft and reward: text), in tokens")
    plan.add_argument("--device", choices=("cuda", "cpu"), help="for a GPU or a CPU; default: for this machine")
    return parser


def _stage(options: argparse.Namespace) -> None:
    verb, arguments = options.verb, options.rest
    refuse_taken(arguments)  # a mistake in the file, too, is told before seconds of imports
    _quiet_warnings()
    _show_log()
    module, configs, given = read_stage(verb, arguments)
    if any(getattr(config, "plan", False) for config in configs):
        from rlhf_lines.plan import Options, plan, plan_table

        _say(plan_table(plan(arguments, Options(stage=verb, timed=True))))
        return
    if verb not in WITHOUT_BARS:
        _hide_bars()
    folder, was_complete = run_configured(module, configs, given)
    if distributed.leads():  # of several processes, one speaks
        from rlhf_lines.summary import summary

        _say(summary(verb, folder, was_complete=was_complete))


def _check_rewards(arguments: list[str]) -> None:
    _quiet_warnings()
    _show_log()
    _hide_bars()
    from rlhf_lines.arguments import parse
    from rlhf_lines.train.reward_check import REWARD_CHECK, check, check_table

    configs, _ = parse(REWARD_CHECK, arguments, prog=f"rlhf-lines reward {CHECK}")
    _say(check_table(check(*configs)))


def _demo(options: argparse.Namespace) -> None:
    _quiet_warnings()
    _hide_bars()
    from rlhf_lines import demo

    for _, name in demo.STAGES if options.config_dir else ():
        if not (Path(options.config_dir) / f"{name}.yaml").is_file():
            raise FileNotFoundError(f"config_dir {options.config_dir} has no {name}.yaml, one of the demo's configs")
    for text in demo.run(options.output_dir, options.config_dir):
        _say(text)


def _configs(options: argparse.Namespace) -> None:
    from rlhf_lines.shipped import copy_configs

    _say(*copy_configs(options.folder))


def _front(options: argparse.Namespace) -> None:
    from rlhf_lines.pareto import front_table
    from rlhf_lines.summary import gains_table
    from rlhf_lines.sweep.finished.front import gains, trace_front
    from rlhf_lines.sweep.store import Store

    asked = {"objectives": options.objectives, "reference_point": _reference_point(options.reference_point)}
    front = trace_front(options.run_dir, **asked)
    if any(value is not None for value in asked.values()):  # the page would show what the front is no longer made of
        from rlhf_lines.sweep.finished.report import write_report

        write_report(options.run_dir)
    with Store(Path(options.run_dir), reading=True) as store:
        found = gains(store)  # those of the objectives that there are now; the record has those of the sweep
    _say(front_table(front, all_points=options.all), "", gains_table(found))


def _reference_point(words: list[str] | None) -> list[float] | str | None:
    if words in (None, ["anchors"]):
        return words and "anchors"
    try:
        return [float(word) for word in words]
    except ValueError:
        found = " ".join(words)
        raise ValueError(f"--reference_point is {found}, expected a number per objective, or anchors") from None


def _pick(options: argparse.Namespace) -> None:
    if options.scale is not None and options.preference is None:
        raise ValueError(f"scale is {options.scale}, but it belongs to a preference; give --preference W W ...")
    bounds = {"minimum": _bounds("--min", options.min), "maximum": _bounds("--max", options.max)}
    from rlhf_lines.pareto import named_elsewhere, pick, picked_text
    from rlhf_lines.serve.mixed import mix_of_point

    if stored := (Path(options.run_dir) / RUN_STORE).is_file():
        from rlhf_lines.sweep.finished.front import front_of as read_front
    else:
        from rlhf_lines.pareto import read_front
    front = read_front(options.run_dir)
    names = ("preference", "scale", "maximize", "minimize", "group", "max_kl", "point")
    picked = pick(front, **bounds, **{name: getattr(options, name) for name in names})
    known = {"mix": mix_of_point(front, picked.point), "elsewhere": named_elsewhere(front, picked.point)}
    if stored:
        from rlhf_lines.sweep.finished.behaviour import lost_prompts
        from rlhf_lines.sweep.finished.worth import worth_of

        known["worth"] = worth_of(options.run_dir, front, picked)
        known["prompts"] = lost_prompts(options.run_dir, front, picked.point)
    _say(picked_text(front, picked.point, options.run_dir, picked=picked, **known))


def _bounds(flag: str, texts: Sequence[str] | None) -> dict[str, float] | None:
    if texts is None:
        return None
    bounds: dict[str, float] = {}
    for name, value in (_bound(flag, text) for text in texts):
        if name in bounds:
            raise ValueError(f"{flag} has {name!r} twice, {bounds[name]:g} and {value:g}: give every name once")
        bounds[name] = value
    return bounds


def _bound(flag: str, text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = None
    if value is None or not name:
        raise ValueError(f"{flag} has {text!r}, expected NAME=SCORE, such as r2=0.4")
    return name, value


def _report(options: argparse.Namespace) -> None:
    from rlhf_lines.sweep.finished.report import write_report

    path = write_report(options.run_dir)
    _say(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser without a network")


def _compare(options: argparse.Namespace) -> None:
    refuse_existing(options.output_dir, overwrite=options.overwrite)
    if any(read_record(folder).get("stage") == "learn" for folder in options.run_dirs):
        _compare_learned(options)
        return
    from rlhf_lines.pareto.comparison import FILE_NAME
    from rlhf_lines.pareto.comparison_table import comparison_table
    from rlhf_lines.sweep.finished.compare import FIGURES, PAGE, compare

    comparison = compare(
        options.run_dirs,
        options.against,
        output_dir=options.output_dir,
        reference_point=options.reference_point,
        overwrite=options.overwrite,
    )
    others = ", ".join([FILE_NAME, *FIGURES])
    _say(comparison_table(comparison), "", f"wrote {Path(options.output_dir) / PAGE}, and beside it {others}")


def _compare_learned(options: argparse.Namespace) -> None:
    for name in ("against", "reference_point"):
        if getattr(options, name):
            raise ValueError(f"--{name} is of sweeps, and {options.run_dirs[0]} is a run of learn: leave it out")
    from rlhf_lines.learn.comparison import compare
    from rlhf_lines.learn.shown import comparison_text

    found = compare(options.run_dirs, output_dir=options.output_dir, overwrite=options.overwrite)
    _say(comparison_text(found), "", f"wrote {Path(options.output_dir) / RECORD}")


def _score(options: argparse.Namespace) -> None:
    _quiet_warnings()
    _hide_bars()
    from rlhf_lines.pareto import front_table
    from rlhf_lines.sweep.finished.judged import judged_text
    from rlhf_lines.sweep.finished.score import score

    settings = {"batch_size": options.batch_size, "as_objectives": options.as_objectives}
    outcome = score(options.run_dir, options.rewards, **settings)
    for name, count in outcome.scored.items():
        _say(
            f"{name}: scored {counted(count, 'completion')}"
            if count
            else f"{name}: all completions have this score already"
        )
        if name in outcome.judged:
            _say(f"{name}: {judged_text(outcome.judged[name])}")
        for text in outcome.wins.get(name, ()):
            _say(f"{name}: {text}")
    _say("", front_table(outcome.front))


def _evaluate(options: argparse.Namespace) -> None:
    _quiet_warnings()
    _show_log()
    _hide_bars()
    from rlhf_lines.evaluation.evaluate import evaluate
    from rlhf_lines.pareto.table import benchmarks_table

    tasks = [task for words in options.tasks for task in words.split(",") if task]
    names = ("points", "limit", "num_fewshot", "apply_chat_template", "system_instruction", "include_path")
    given = {name: getattr(options, name) for name in (*names, "batch_size", "overwrite")}
    outcome = evaluate(options.run_dir, tasks, groups=options.group, **given)
    if outcome is None:  # of several processes, one speaks
        return
    for task, count in outcome.asked.items():
        _say(
            f"{task}: asked {counted(count, 'policy', 'policies')}"
            if count
            else f"{task}: all these points have been asked already"
        )
    _say("", benchmarks_table(outcome.front))


def _export(options: argparse.Namespace) -> None:
    if options.adapters is not None:
        _export_adapters(options)
        return
    from rlhf_lines.sweep.finished.export import export

    format = options.format or "parquet"
    for path in export(options.run_dir, options.output_dir, format=format, overwrite=options.overwrite):
        _say(f"wrote {path}")


def _export_adapters(options: argparse.Namespace) -> None:
    if options.format is not None:
        raise ValueError(f"format is {options.format}, but it is of tables, and --adapters writes none: leave one out")
    _quiet_warnings()
    _hide_bars()
    from rlhf_lines.serve.adapters import export_adapters

    settings = {"group": options.adapters, "overwrite": options.overwrite}
    written = export_adapters(options.run_dir, options.output_dir, **settings)
    _say(*(f"wrote {written.folder / name}" for name in written.names), f"serve: {written.serving}", *written.told)


def _serve(options: argparse.Namespace) -> None:
    _quiet_warnings()
    _hide_bars()
    from rlhf_lines.serve.command import serve_command, start

    names = ("group", "scale", "host", "port", "max_mixes", "max_disk", "cache_dir", "dtype", "api_key_env", "vllm")
    command = serve_command(options.run_dir, **{name: getattr(options, name) for name in names})
    _say(*command.told)
    start(command)


def _plan(options: argparse.Namespace) -> None:
    if options.prompt_tokens is not None and options.prompt_tokens < 1:
        raise ValueError(f"prompt_tokens is {options.prompt_tokens}, expected at least 1")
    from rlhf_lines.progress import steps

    with steps("plan", "loading libraries"):
        _quiet_warnings()
        if options.stage not in WITHOUT_BARS:
            _hide_bars()
        from rlhf_lines.plan import Options, plan, plan_table

        asked = Options(options.stage, options.base_model, options.prompt_tokens, options.device, timed=True)
        config = [] if options.config is None else ["--config", options.config]
        text = plan_table(plan([*config, *options.rest], asked), options.config)
    _say(text)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: rlhf-lines VERB [--config FILE] [--flag value ...]\n\n"
        f"{verbs}\n\n"
        "rlhf-lines VERB --help lists the flags of a verb. Every flag of a stage can be a key of its YAML file; one\n"
        "given on the command line wins, and of one given twice the last. A switch may have a value: --overwrite,\n"
        "--overwrite true, --overwrite false. An existing output_dir is refused; --resume keeps it or goes on with\n"
        "it, --overwrite replaces it."
    )


def _quiet_warnings() -> None:
    """Hide notices to developers of TRL."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


class _Stderr(logging.Handler):
    """Prints where stderr is at the time; of several processes, one speaks."""

    def emit(self, record: logging.LogRecord) -> None:
        if distributed.leads():
            print(self.format(record), file=sys.stderr)


def _show_log() -> None:
    """Let what our own modules log be seen, above all how the first row is read."""
    own = logging.getLogger("rlhf_lines")
    own.setLevel(logging.INFO)
    if not any(isinstance(handler, _Stderr) for handler in own.handlers):
        own.addHandler(_Stderr())


def _hide_bars() -> None:
    """Leave one progress bar per stage: hide those of file loading."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
