"""The question that every way of finding the best items is asked, and its answer in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of float64 scores that are held at once.
AT_ONCE = 64


@dataclass(frozen=True)
class Sizes:
    """Of the question. had: items of a history."""

    users: int = 1024
    items: int = 1_024_000
    width: int = 128
    top_k: int = 100
    had: int = 50


@dataclass
class Question:
    """On the device: user float16[B, D], table float16[V, D], bias float32[V], history int64[B, S]."""

    user: Tensor
    table: Tensor
    bias: Tensor
    history: Tensor
    available: Tensor


def question(sizes: Sizes, device: str) -> Question:
    """Random vectors; of each history the last item is the user's very best one."""
    draw = torch.Generator(device).manual_seed(5)
    user = torch.randn(sizes.users, sizes.width, generator=draw, device=device) * sizes.width**-0.5
    table = torch.randn(sizes.items, sizes.width, generator=draw, device=device).half()
    bias = 0.3 * torch.randn(sizes.items, generator=draw, device=device)
    available = torch.rand(sizes.items, generator=draw, device=device) > 0.01
    available[0] = False
    # As half precision knows it, in every way.
    bias = bias.half().float().masked_fill(~available, float("-inf"))
    history = torch.randint(1, sizes.items, (sizes.users, sizes.had), generator=draw, device=device)
    asked = Question(user.half(), table, bias, history, available)
    for at in range(0, sizes.users, AT_ONCE):
        history[at : at + AT_ONCE, -1] = scores(asked, at).argmax(dim=1)
    return asked


def scores(asked: Question, at: int) -> Tensor:
    """float64[AT_ONCE, V] for the users from `at`."""
    return asked.user[at : at + AT_ONCE].double() @ asked.table.double().T + asked.bias


def truth(asked: Question, top_k: int) -> tuple[Tensor, Tensor]:
    """The lists in float64: index int64[B, K], score float64[B, K]."""
    parts = []
    for at in range(0, len(asked.user), AT_ONCE):
        masked = scores(asked, at).scatter_(1, asked.history[at : at + AT_ONCE], float("-inf"))
        parts.append(masked.topk(top_k, dim=1))
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def judged(asked: Question, index: Tensor, right: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Share of the right items among those of a way, and how much less its nth best is worth at most."""
    index = index.to(asked.user.device)
    own = torch.einsum("bd,bkd->bk", asked.user.double(), asked.table[index].double()) + asked.bias[index]
    had = (index[:, :, None] == asked.history[:, None, :]).any(dim=2)
    own = own.masked_fill(had, float("-inf")).sort(dim=1, descending=True).values
    kept = (index[:, :, None] == right[0][:, None, :]).any(dim=2).double().mean()
    return float(kept), float((right[1] - own).max())
