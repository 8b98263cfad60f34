"""`doctor`: what is wrong, risky or improvable in the skip connections of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from skipway.errors import SkipwayError
from skipway.graph.ir import Site
from skipway.graph.rules import RULES, Finding, Found, folded
from skipway.graph.rules.case import Case
from skipway.graph.rules.construction import FORWARD_FAILS, failure_of, meeting_strangers
from skipway.graph.rules.observe import carries_data, gradients, responses
from skipway.graph.rules.signals import watched
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.tracing import trace


def doctor(model: nn.Module, *args: Any, loss: Callable[[Any], Any] | None = None, **kwargs: Any) -> list[Finding]:
    """Look a model over on these inputs and return what was found, the most severe first; an empty list is good news.

    The model is traced in training and in evaluation mode, and its branches, sums and gates are measured in the mode it
    is in, where the inputs are data (zeros or ones stand for a shape alone, a `meta` tensor for nothing). `loss`, a
    function of the model's output that returns one number, adds the rules about gradients. The rules and what each
    detects are in `skipway.graph.rules.RULES`. The model, its mode, its gradients, its buffers, the inputs and the
    random generators are left as they were.

    A model that fails on these inputs is a finding. Raises SkipwayError where the model is no module, cannot be called
    with these arguments, or the loss is not one number.

    >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> import torch
    >>> [(finding.rule, finding.severity) for finding in doctor(block, torch.zeros(2, 3, 8, 8))]
    [('bias-before-norm', 'advice')]
    """
    if loss is not None and not callable(loss):
        raise SkipwayError(f"loss= takes a function of the model's output, not {type(loss).__name__}")
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise SkipwayError(f"doctor takes a torch.nn.Module, and this is {given}: call it as doctor(model, *inputs)")
    try:
        with meeting_strangers(model) as strangers:
            graph = trace(model, *args, **kwargs)
    except SkipwayError as error:
        failure = None if error.__cause__ is None else failure_of(model, error.__cause__)
        if failure is None:
            raise
        return [RULES[FORWARD_FAILS].finding(Found(*failure))]
    training = model.training
    other, failure = _in_other_mode(model, args, kwargs)
    plain = Case(model, graph, training)
    measured = (
        responses(model, args, kwargs, graph.trace, watched(plain)) if carries_data(model, args, kwargs) else None
    )
    learned = None if loss is None else gradients(model, args, kwargs, loss)
    cases = [Case(model, graph, training, other, failure, measured, learned, tuple(strangers))]
    if other is not None:
        # In evaluation nothing is left out at random: what both traces show is told as it stands there.
        cases.insert(0 if training else 1, Case(model, other, not training))
    findings = [rule.finding(found) for case in cases for rule in RULES.values() for found in rule.check(case)]
    return folded(findings)


def _in_other_mode(model: nn.Module, args: Any, kwargs: Any) -> tuple[SkipGraph | None, tuple[Site, str] | None]:
    """The trace in the mode that the model is not in, or why there is none."""
    other = "evaluation" if model.training else "training"
    try:
        with _mode(model, not model.training):
            return trace(model, *args, **kwargs), None
    except SkipwayError as error:
        cause = error.__cause__
        # Batch norm cannot train on one sample of one pixel: that says nothing about the model.
        if cause is None or "more than 1 value per channel" in str(cause):
            return None, None
        return None, failure_of(model, cause, f" in {other} mode")


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the flags alone: a `train` that was overridden may do more, such as folding weights."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = training
        yield
    finally:
        for module, flag in before:
            module.training = flag
