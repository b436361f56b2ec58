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
from resnets.training.optim import set_training_mode
from resnets.training.plan import Plan
from resnets.training.state import State, all_finite, ema_update, flat_view, floating, local_tensor

DIVERGED_AFTER = 3  # steps in a row that are not finite

Outcome = Literal["done", "skipped", "diverged"]


class Step:
    """Moves the state of a run on, batch by batch."""

    def __init__(self, plan: Plan, state: State) -> None:
        self.plan, self.state = plan, state
        self.loss = plan.task.make_loss(plan)
        # Listed once: walking over the modules of a deep network takes milliseconds.
        self.parameters = list(state.network.parameters())
        self.buffers = list(state.network.buffers())
        self.current = [local_tensor(t) for t in state.network.state_dict().values()]
        self.average = [local_tensor(t) for t in state.average.state_dict().values()]
        self.learned = [flat_view(t) for t in (*self.parameters, *floating(self.average))]
        self.sent: list[Message] = []  # to other ranks, in the backward pass under way
        self.replicate(frozen=False)

    def update(self, batch: Batch) -> Outcome:
        """Set the rate, forward, backward, move the weights, average them.

        "skipped": loss, gradient or normalisation statistics were not finite, and everything but
        the position is as before. "diverged": that three times in a row, or weights or their
        average that are not finite: the state has to be thrown away.
        """
        plan, progress, optimizer = self.plan, self.state.progress, self.state.optimizer
        frozen = progress.step < plan.frozen_steps
        if frozen != self.frozen:
            self.replicate(frozen)
        self.set_rates()
        saved_buffers = [buffer.clone() for buffer in self.buffers]
        sums = self.backward(batch, saved_buffers)
        if plan.recipe.sam:
            self.sam_gradient(batch)
        statistics = floating(self.buffers)
        plan.world.all_reduce_mean(statistics)
        gradients = [flat_view(p.grad) for p in self.parameters if p.grad is not None]
        progress.step += 1
        if not self.finite([sums.float(), *gradients, *statistics]):
            self.restore_buffers(saved_buffers)
            optimizer.zero_grad()
            progress.skipped_in_a_row += 1
            return "skipped" if progress.skipped_in_a_row < DIVERGED_AFTER else "diverged"
        if plan.recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters, plan.recipe.clip, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        self.update_average()
        self.state.totals += sums
        progress.skipped_in_a_row = 0
        # A moment of the optimiser that is not finite has made its weight so by now.
        return "done" if self.finite(self.learned) else "diverged"

    @torch.no_grad()
    def sam_gradient(self, batch: Batch) -> None:
        """Replace the gradient g by that at w + rho g / |g|.    2010.01412, Algorithm 1

        Normalisation keeps the statistics of the pass at w. What a step draws is the same in both.
        """
        learned = [p.detach() for p in self.parameters if p.grad is not None]
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        weights = [w.clone() for w in learned]
        buffers = [buffer.clone() for buffer in self.buffers]
        norm = torch.stack(list(torch._foreach_norm(gradients))).norm()
        scale = self.plan.recipe.sam / (norm + 1e-12)
        torch._foreach_add_(learned, list(torch._foreach_mul(gradients, scale)))
        self.state.optimizer.zero_grad()
        with torch.enable_grad():
            self.backward(batch, buffers)
        torch._foreach_copy_(learned, weights)
        self.restore_buffers(buffers)

    def set_rates(self) -> None:
        """The learning rate of this step, and the momentum where the schedule changes it."""
        recipe, progress = self.plan.recipe, self.state.progress
        lr = progress.lr_scale * recipe.rate(progress.step, progress.steps, progress.lr_drops)
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
            if recipe.schedule == "one-cycle":
                group["momentum"] = recipe.cycled_momentum(progress.step, progress.steps)

    def update_average(self) -> None:
        """Average the weights after every `ema_every` steps; without an average, copy them."""
        recipe, progress = self.plan.recipe, self.state.progress
        last_copied = round((1 - recipe.swa) * progress.steps)
        if not recipe.ema and (not recipe.swa or progress.step <= last_copied):
            ema_update(self.average, self.current, 0.0)
            return
        updates, others = divmod(progress.step, recipe.ema_every)
        if others and not progress.done:
            return
        if recipe.swa:
            averaged = updates - last_copied // recipe.ema_every + bool(others)
            ema_update(self.average, self.current, 1 - 1 / averaged)
        else:  # a short memory while the weights move fast
            ema_update(self.average, self.current, min(recipe.ema, updates / (updates + 9)))

    def finite(self, tensors: list[Tensor]) -> bool:
        """Whether all are finite, on all ranks; they differ between ranks only with `fsdp`."""
        bad = not all_finite(tensors)
        return not (self.plan.world.all_reduce_max([bad])[0] if self.plan.recipe.fsdp else bad)

    def restore_buffers(self, saved: list[Tensor]) -> None:
        """Undo what forward passes did to the network's buffers."""
        for buffer, before in zip(self.buffers, saved, strict=True):
            buffer.copy_(before)

    def backward(self, batch: Batch, saved_buffers: list[Tensor]) -> Tensor:
        """Gradients of the batch, in micro-batches; half as large ones where memory runs out.

        All ranks halve together. A rank that ran out of memory sends zeros for the messages that
        the others still wait for, and all throw the gradients away.

        Returns float64 (3,), over all ranks: sum of the losses, wrong predictions, images.
        """
        world, progress = self.plan.world, self.state.progress
        while True:
            sums = self.accumulate_or_fail(batch)
            # Outside of its `except`, which would keep the failed pass alive.
            for values, dtype in self.messages_of_a_pass[len(self.sent) :]:
                world.all_reduce_sum(sums.new_zeros(values, dtype=dtype))
            images = world.all_reduce_sum(sums)[2]
            if not images.isnan():
                return sums
            progress.micro_batch = (progress.micro_batch + 1) // 2
            self.restore_buffers(saved_buffers)
            self.replicate(self.frozen)

    def accumulate_or_fail(self, batch: Batch) -> Tensor:
        """The sums of `accumulate`, or NaN where memory ran out.

        Raises MemoryExhausted where half as many images are no way out: for a single one, and with
        `fsdp` and `norm=sync`, within whose passes ranks wait for other messages; UsageError where
        batch normalisation has a single value.
        """
        recipe, micro_batch = self.plan.recipe, self.state.progress.micro_batch
        try:
            return self.accumulate(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"a forward pass of one image of {batch.images.shape[-1]} pixels leaves batch "
                "normalisation a single value:\ntrain on two images or more at once, as --set "
                "batch=2 (on each process, and --set micro_batch=2 or more), or with a larger size"
            ) from None
        except RuntimeError as error:
            on_host = "can't allocate memory" in str(error)
            if not on_host and not isinstance(error, torch.OutOfMemoryError):
                raise
            synchronous = recipe.fsdp or recipe.norm == "sync"
            if micro_batch <= 1 or (synchronous and self.plan.world.size > 1):
                raise MemoryExhausted(
                    f"out of memory with {micro_batch} images in a forward pass; "
                    "try --set micro_batch=N with fewer, or --set activation_checkpointing=4"
                ) from None
            return torch.full_like(self.state.totals, math.nan)

    def accumulate(self, batch: Batch) -> Tensor:
        """Forward and backward of each micro-batch; the gradient is that of the global mean loss.

        Every draw of a micro-batch comes from its number in the global batch, so neither a resume
        nor another number of ranks needs a generator's state.
        """
        plan, recipe, progress = self.plan, self.plan.recipe, self.state.progress
        sums = torch.zeros_like(self.state.totals)
        self.sent.clear()
        # As many on each rank, also where images could not be read: the passes exchange messages.
        count = math.ceil(plan.local_batch / progress.micro_batch)
        pairs = zip(
            batch.images.tensor_split(count), batch.targets.tensor_split(count), strict=True
        )
        for k, (images, targets) in enumerate(pairs):
            number = plan.world.rank * count + k
            count_in_part = len(images)
            if not count_in_part:  # images were unreadable; others wait for this pass's messages
                images, targets = batch.images[:1], batch.targets[:1]
            torch.manual_seed(((recipe.seed * 1_000_003 + progress.step) * 4096 + number) % 2**63)
            with accumulating(self.replica, more=k < count - 1):
                loss, wrong = self.loss(self.replica, images, targets)
                share = count_in_part * plan.world.size / recipe.batch
                (loss * share).backward()  # type: ignore[no-untyped-call]
            size = torch.full_like(loss, count_in_part, dtype=torch.float64)
            sums += torch.stack([loss.detach() * size, wrong * bool(count_in_part), size])
        return sums

    def replicate(self, frozen: bool) -> None:
        """Train all layers, or if `frozen` the new ones; from now on average gradients."""
        network = self.state.network
        self.frozen = frozen
        recipe = self.plan.recipe
        set_training_mode(network, frozen, frozen or recipe.norm == "frozen", recipe.freeze_stages)
        self.state.optimizer.zero_grad()
        self.replica: nn.Module = network
        gc.collect()  # frees the replica of before, which has hooks on the same weights
        if not self.plan.recipe.fsdp:
            inputs = self.plan.task.example_inputs(self.plan, 2, self.plan.preprocess.size)
            self.replica = self.plan.world.replicate(network, inputs, self.sent)
        self.messages_of_a_pass = list(self.sent)
