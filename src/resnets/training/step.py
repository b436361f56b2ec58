"""One optimiser step, from a batch to moved weights, or back to where it began."""

from __future__ import annotations

import gc
import math
from typing import Literal

import torch
from torch import Tensor, nn

from resnets.data.loader import Batch
from resnets.errors import MemoryExhausted, UsageError
from resnets.training.distributed import Message, accumulating
from resnets.training.optim import set_mode
from resnets.training.plan import Plan
from resnets.training.state import State, all_finite, ema_update, flat_view, floating, local_tensor

BAD_STEPS = 3  # in a row that may be left out


class Step:
    """Moves the state of a run on, batch by batch."""

    def __init__(self, plan: Plan, state: State) -> None:
        self.plan, self.state = plan, state
        self.loss = plan.task.make_loss(plan)
        # Looked up once: walking over the modules of a deep network takes milliseconds.
        network, average = state.network, state.average
        self.parameters = list(network.parameters())
        self.buffers = list(network.buffers())
        self.current = [local_tensor(t) for t in network.state_dict().values()]
        self.average = [local_tensor(t) for t in average.state_dict().values()]
        self.rows = [flat_view(t) for t in (*self.parameters, *floating(self.average))]
        self.sent: list[Message] = []  # in the backward pass under way
        self.replicate(frozen=False)

    def update(self, batch: Batch) -> Literal["done", "skipped", "lost"]:
        """Set the rate, forward, backward, move the weights, average them.

        "skipped": loss, gradient or normalisation statistics were not finite, and but for the
        position everything is as before. "lost": so three times in a row, or the state itself is
        not finite; it has to be thrown away.
        """
        plan, state, course = self.plan, self.state, self.state.course
        recipe, optimizer = plan.recipe, state.optimizer
        if (frozen := course.step < plan.frozen_steps) != self.frozen:
            self.replicate(frozen)
        rate = course.factor * recipe.rate(course.step, course.steps, course.drops)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
            if recipe.schedule == "one-cycle":
                group["momentum"] = recipe.cycled_momentum(course.step, course.steps)

        before = [b.clone() for b in self.buffers]
        sums = self.backward(batch, before)
        numbers = floating(self.buffers)
        plan.world.all_reduce_mean(numbers)
        gradients = [flat_view(p.grad) for p in self.parameters if p.grad is not None]
        course.step += 1
        if not self.finite([sums.float(), *gradients, *numbers]):
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(old)
            optimizer.zero_grad()
            course.skipped += 1
            return "skipped" if course.skipped < BAD_STEPS else "lost"
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters, recipe.clip, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        if not recipe.ema or course.step % recipe.ema_every == 0 or course.ended:
            # a short memory while the weights move fast
            count = course.step // recipe.ema_every
            ema_update(self.average, self.current, min(recipe.ema, count / (count + 9)))
        state.totals += sums
        course.skipped = 0
        # What is not finite in a moment is so in its weight by now.
        return "done" if self.finite(self.rows) else "lost"

    def finite(self, tensors: list[Tensor]) -> bool:
        """Whether all are finite, of all ranks: without sharding they have the same."""
        bad = not all_finite(tensors)
        return not (self.plan.world.all_reduce_max([bad])[0] if self.plan.recipe.fsdp else bad)

    def backward(self, batch: Batch, before: list[Tensor]) -> Tensor:
        """Gradients of the batch, in micro-batches; half as large ones where memory runs out.

        All ranks halve together. One whose pass failed sends zeros for what the others still wait
        for, and all throw the gradients away. Within a pass of `fsdp` and `norm=sync` other
        messages are waited for, so they raise MemoryExhausted, as a single image does.

        Returns float64 (3,), over all ranks: sum of the losses, wrong answers, images.
        """
        plan, course = self.plan, self.state.course
        tied = plan.world.size > 1 and (plan.recipe.fsdp or plan.recipe.norm == "sync")
        while True:
            try:
                sums = self.accumulate(batch)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise UsageError(
                    f"a forward pass of one image of {batch.images.shape[-1]} pixels leaves batch "
                    "normalisation a single value:\ntrain on two images or more at once, as --set "
                    "batch=2 (on each process, and --set micro_batch=2 or more), or at a larger "
                    "size"
                ) from None
            except RuntimeError as error:
                host = "can't allocate memory" in str(error)
                if not host and not isinstance(error, torch.OutOfMemoryError):
                    raise
                if course.micro <= 1 or tied:
                    raise MemoryExhausted(
                        f"out of memory with {course.micro} images in a forward pass; "
                        "try --set micro_batch=N with fewer, or --set activation_checkpointing=4"
                    ) from None
                sums = torch.full_like(self.state.totals, math.nan)
            # Outside of `except`, which would keep the failed pass alive.
            for values, dtype in self.messages[len(self.sent) :]:
                plan.world.all_reduce_sum(sums.new_zeros(values, dtype=dtype))
            if not plan.world.all_reduce_sum(sums)[2].isnan():  # the number of images
                return sums
            course.micro = (course.micro + 1) // 2
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(old)
            self.replicate(self.frozen)

    def accumulate(self, batch: Batch) -> Tensor:
        """Forward and backward of each micro-batch; the gradient is that of the global mean loss.

        Every draw of a micro-batch comes from its number in the global batch, so neither a resume
        nor another number of ranks needs a generator's state.
        """
        plan, recipe, course = self.plan, self.plan.recipe, self.state.course
        world, sums = plan.world, torch.zeros_like(self.state.totals)
        self.sent.clear()
        # As many on each rank, also where an image could not be read: they exchange messages.
        count = math.ceil(plan.local_batch / course.micro)
        parts = batch.images.tensor_split(count), batch.targets.tensor_split(count)
        pieces = list(zip(*parts, strict=True))
        first = world.rank * count
        for number, (images, targets) in enumerate(pieces, start=first):
            torch.manual_seed(((recipe.seed * 1_000_003 + course.step) * 4096 + number) % 2**63)
            more = number < first + len(pieces) - 1
            with accumulating(self.replica, more):
                loss, wrong = self.loss(self.replica, images, targets)
                (loss * (len(images) * world.size / recipe.batch)).backward()  # type: ignore[no-untyped-call]
            seen = torch.full_like(loss, len(images), dtype=torch.float64)
            sums += torch.stack([loss.detach() * seen, wrong, seen])
        return sums

    def replicate(self, frozen: bool) -> None:
        """Let all learn, or what is new alone, and join the ranks' gradients; there are none."""
        network = self.state.network
        self.frozen = frozen
        set_mode(network, frozen, frozen or self.plan.recipe.norm == "frozen")
        self.state.optimizer.zero_grad()
        self.replica: nn.Module = network
        gc.collect()  # what joined them before goes, with its hooks on the same weights
        if not self.plan.recipe.fsdp:
            inputs = self.plan.task.example_inputs(self.plan, 2, self.plan.preprocess.size)
            self.replica = self.plan.world.replicate(network, inputs, self.sent)
        self.messages = list(self.sent)  # of a whole backward pass
