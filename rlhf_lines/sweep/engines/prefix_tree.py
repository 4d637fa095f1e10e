"""The SFT model's log-probabilities of many completions, each distinct prefix read once.

Specs that share their noise write alike: of the completions of one prompt most begin with the same tokens, and all with
the prompt. So the completions of a prompt are the paths of a tree, its nodes are laid out in one row behind the prompt,
and every node attends to the prompt and to its own ancestors. A row of 22 completions of a prompt reads the prompt once
instead of 22 times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlhf_lines.sweep.engines.protocol import Pair, Tokens


MOST_NODES = 1024  # of one tree: its attention mask has as many squared
STATES = 128  # that go through the head at once
# Attention there is a function of mask and positions alone, which a test asserts for each of them.
ARCHITECTURES = ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")


@dataclass
class Tree:
    """Completions of one prompt as paths from the root; node i is the token after its parent.

    Attributes:
        prompt: token ids, the root.
        tokens: of the nodes, parents before children.
        parents: index of each node's parent, -1 for the root.
        ends: from each completion to its last node.
    """

    prompt: Tokens
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ends: dict[Tokens, int] = field(default_factory=dict)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, completion: Tokens) -> None:
        """Add a path."""
        node = -1
        for token in completion:
            known = self._children.setdefault((node, token), len(self.tokens))
            if known == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(node)
            node = known
        self.ends[completion] = node


def trees_of(pairs: Iterable[Pair]) -> list[Tree]:
    """Trees that hold every pair of prompt and completion, few enough nodes in each."""
    trees, growing = [], {}
    for prompt, completion in pairs:
        tree = growing.get(prompt)
        if tree is None or len(tree.tokens) + len(completion) > MOST_NODES:
            tree = growing[prompt] = Tree(prompt)
            trees.append(tree)
        tree.add(completion)
    return trees


def takes_trees(model: nn.Module) -> bool:
    """Whether the model's attention may be given as a mask over nodes."""
    text = model.config.get_text_config()
    return (
        text.model_type in ARCHITECTURES
        and model.config._attn_implementation in ("sdpa", "eager")
        and getattr(text, "sliding_window", None) is None
        and set(getattr(text, "layer_types", None) or ()) <= {"full_attention"}
    )


@torch.no_grad()
def tree_logprobs(model: nn.Module, trees: Sequence[Tree], pad_token_id: int, temperature: float) -> dict[Pair, float]:
    """Log p(completion | prompt) of every pair in the trees, under softmax(logits / temperature).

    Args:
        model: a causal language model for which `takes_trees` holds.
        trees: read in one batch.
        pad_token_id: fills up the rows.
        temperature: of the softmax.
    """
    device = model.device
    roots = max(len(tree.prompt) for tree in trees)
    nodes = max(len(tree.tokens) for tree in trees)
    ids = torch.full((len(trees), roots + nodes), pad_token_id)
    positions = torch.zeros_like(ids)
    sees = torch.eye(roots + nodes, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself: no row is empty
    parents = torch.zeros(len(trees), nodes, dtype=torch.long)
    for row, tree in enumerate(trees):
        _lay_out(tree, ids[row], positions[row], sees[row], parents[row], roots)
    bias = torch.zeros(sees.shape, dtype=model.dtype).masked_fill_(~sees, torch.finfo(model.dtype).min)
    states = model.base_model(
        input_ids=ids.to(device),
        attention_mask=bias.unsqueeze(1).to(device),
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state[:, roots - 1 :]  # of the last token of the prompt, and of every node
    is_node = torch.arange(nodes) < torch.tensor([[len(tree.tokens)] for tree in trees])
    before = (parents + (nodes + 1) * torch.arange(len(trees)).unsqueeze(1))[is_node].to(device)
    values = _next_logprobs(model, states.flatten(0, 1), before, ids[:, roots:][is_node].to(device), temperature)
    logprobs = torch.split(values, [len(tree.tokens) for tree in trees])
    found = {}
    for tree, of_nodes in zip(trees, logprobs, strict=True):
        sums: list[float] = []
        for parent, value in zip(tree.parents, of_nodes.tolist(), strict=True):
            sums.append(value + (sums[parent] if parent >= 0 else 0.0))
        found |= {(tree.prompt, completion): sums[node] for completion, node in tree.ends.items()}
    return found


def _next_logprobs(model: nn.Module, states: Tensor, before: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log softmax(logits / temperature) of tokens `[n]`, float64, each from the state before it, by index.

    Each state that is before a token goes through the head once, a few at a time.
    """
    head, values = model.get_output_embeddings(), torch.zeros(len(tokens), dtype=torch.float64)
    distinct, of_token = before.unique(return_inverse=True)
    for start in range(0, len(distinct), STATES):
        logits = head(states[distinct[start : start + STATES]])
        here = ((of_token >= start) & (of_token < start + STATES)).nonzero().squeeze(1)
        rows = of_token[here] - start
        logits = logits.float() / temperature
        values[here.cpu()] = (logits[rows, tokens[here]] - logits.logsumexp(-1)[rows]).double().cpu()
    return values


def _lay_out(tree: Tree, ids: Tensor, positions: Tensor, sees: Tensor, parents: Tensor, roots: int) -> None:
    """Write a tree into its row of a batch: the prompt ends at column `roots`, the nodes follow.

    `parents` gets, for each node, the index of its parent among the kept states: 0 is the end of the prompt.
    """
    first, last = roots - len(tree.prompt), roots + len(tree.tokens)
    ids[first:last] = torch.tensor(tree.prompt + tuple(tree.tokens))
    positions[first:roots] = torch.arange(len(tree.prompt))
    sees[first:roots, first:roots] = torch.ones(len(tree.prompt), len(tree.prompt), dtype=torch.bool).tril()
    depths = []
    for node, parent in enumerate(tree.parents):
        sees[roots + node] |= sees[roots + parent]  # of the root that is the last column of the prompt
        depths.append(depths[parent] + 1 if parent >= 0 else len(tree.prompt))
    positions[roots:last] = torch.tensor(depths)
    parents[: len(tree.parents)] = torch.tensor(tree.parents) + 1
