"""What a soak runs: fixed sequences of operations whose outputs lie side by side, so that one comparison checks all.

A case is an operation with several sets of inputs, and the bits that each gave in a calm run that was checked against a
reference. A program is a few hundred of them in random order; its expected memory is made of those bits.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from minimax_rows import WEIGHTS, Operation
from moe_reductions import FinalisedNorm, FinalisedReduction
from ranks import Rank
from reductions import LayerNormedReduction, NormedReduction, QuantisedReduction, QuantisedSum, Reduction
from reference import digest

Step: TypeAlias = "Operation | Reduction | NormedReduction"
Maker: TypeAlias = Callable[[Rank, int], Step]
"""Makes an operation with the inputs of a rank and a seed."""

POISON = 0x7FFF7FFF
"""What output memory holds before a program runs: NaN in every dtype, and no result."""
VARIANTS = 3
LINE_WORDS = 16
"""Outputs begin at multiples of 64 bytes; what lies between them must stay poisoned."""


def outputs_of(step: Step) -> list[torch.Tensor]:
    """In the order of `results()`."""
    if isinstance(step, Operation):
        return step.outs
    return [getattr(step, name) for name in step.OUTPUTS]


def with_outputs(step: Step, outputs: Sequence[torch.Tensor]) -> Step:
    """The same operation on the same inputs, with its results elsewhere."""
    if isinstance(step, Operation):
        return replace(step, outs=list(outputs))
    return replace(step, **dict(zip(step.OUTPUTS, outputs, strict=True)))


def kind_of(step: Step) -> str:
    """Which of the package's operations it is, and how it is asked to sum."""
    if isinstance(step, Operation):
        return "minimax_allreduce_rms" if len(step.widths) == 1 else "minimax_allreduce_rms_qk"
    if isinstance(step, QuantisedReduction):
        return f"all_reduce_rms_norm_quant to {step.quant_format}, {step.algorithm}"
    if isinstance(step, FinalisedReduction | FinalisedNorm):
        norm = "_rms_norm" if isinstance(step, FinalisedNorm) else ""
        return f"moe_finalize_all_reduce{norm}"
    if isinstance(step, LayerNormedReduction):
        return "all_reduce_layer_norm"
    if isinstance(step, QuantisedSum):
        return f"all_reduce_quant to {step.quant_format}, {step.algorithm}"
    return f"{'all_reduce' if isinstance(step, Reduction) else 'all_reduce_rms_norm'}, {step.algorithm}"


def dtypes_of(kind: type[Step]) -> list[tuple[torch.dtype, ...]]:
    """Of the rows, and of the weight if there is one."""
    if kind is Reduction:
        return [pair[:1] for pair in WEIGHTS[:3]]
    if kind is QuantisedSum:
        return [(torch.float16,), (torch.bfloat16,)]
    of_16_bits = (LayerNormedReduction, QuantisedReduction, FinalisedReduction, FinalisedNorm)
    return [pair for pair in WEIGHTS if kind not in of_16_bits or pair[0] != torch.float32]


def make_makers(*kinds: tuple[type[Step], Sequence[tuple]]) -> list[Maker]:
    """For each kind of operation, each of its shapes and each pair of dtypes that it takes; a sum has one dtype."""
    return [
        lambda me, seed, kind=kind, shape=shape, dtypes=dtypes: kind.random(me, *shape, *dtypes, seed)
        for kind, shapes in kinds
        for shape in shapes
        for dtypes in dtypes_of(kind)
    ]


class Case:
    """One operation with several sets of inputs, and the bits that each gives."""

    def __init__(self, me: Rank, make: Maker, seed: int, workspace) -> None:
        """The first set is the same on every rank, so that ranks can compare what they got; the others are not."""
        impartial = Rank(0, me.world_size, me.device)
        members = [impartial] + [me] * (VARIANTS - 1)
        self.variants = [make(member, VARIANTS * seed + index) for index, member in enumerate(members)]
        self.expected = []
        for step in self.variants:
            step.me = me
            step.poison()
            step(workspace)
            step.check("the calm run")
            self.expected.append(step.results())
        self.kind, self.dtype = kind_of(step), str(step.rows.dtype).removeprefix("torch.")
        self.bytes = sum(result.nbytes for result in self.expected[0])


class Program:
    """Operations in a fixed order, and the memory of all their outputs, as int32 words."""

    def __init__(self, picks: Sequence[tuple[Case, int]], device: torch.device) -> None:
        """Cases, each with the number of one of its sets of inputs."""
        self.kinds = Counter(case.kind for case, _ in picks)
        self.dtypes = Counter(case.dtype for case, _ in picks)
        places, end = [], 0
        for case, variant in picks:
            places.append([])
            for result in case.expected[variant]:
                places[-1].append(end)
                end += -(-result.nbytes // 4 // LINE_WORDS) * LINE_WORDS + LINE_WORDS
        self.starts = [place[0] for place in places]
        self.words = torch.full((end,), POISON, dtype=torch.int32, device=device)
        self.expected = self.words.clone()
        self.steps = []
        for (case, variant), place in zip(picks, places, strict=True):
            results = case.expected[variant]
            for start, result in zip(place, results, strict=True):
                self._view(self.expected, start, result).copy_(result)
            views = [self._view(self.words, start, result) for start, result in zip(place, results, strict=True)]
            self.steps.append(with_outputs(case.variants[variant], views))

    @staticmethod
    def _view(words: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
        end = start + -(-like.nbytes // 4)
        return words[start:end].view(like.dtype)[: like.numel()].view(like.shape)

    def describe(self, word: int) -> str:
        """The operation that word number `word` of the outputs belongs to."""
        index = max(index for index, start in enumerate(self.starts) if start <= word)
        return f"operation {index} of its program, {kind_of(self.steps[index])}: {self.steps[index].describe()}"


def make_cases(me: Rank, makers: Sequence[Maker], workspace) -> list[Case]:
    """One for each maker. A collective call, like everything that checks."""
    return [Case(me, make, seed, workspace) for seed, make in enumerate(makers)]


def make_programs(
    cases: Sequence[Case], count: int, length: int, weight: Callable[[Case], float], device: torch.device
) -> list[Program]:
    """The same on every rank."""
    dice, weights = random.Random(1), [weight(case) for case in cases]
    picks = [
        [(case, dice.randrange(VARIANTS)) for case in dice.choices(cases, weights, k=length)] for _ in range(count)
    ]
    return [Program(each, device) for each in picks]


def impartial_digest(cases: Sequence[Case]) -> str:
    """Of the results that must be the same bits on every rank."""
    return digest(*(result for case in cases for result in case.expected[0]))
