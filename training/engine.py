"""DeepSpeed, and nothing of it anywhere else: build, forward, backward, step, and this rank's share of the state."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would warn that it had to find out
import deepspeed
from deepspeed.runtime import compiler as deepspeed_compiler
from deepspeed.runtime.zero import stage3, stage_1_and_2

from training.checkpoint_files import AVERAGE
from training.distributed import all_gather_by_broadcasts, become_a_group_of_one
from training.engine_settings import EngineSettings
from training.fragments import LAYOUTS, LocalFragment
from training.loss_spikes import SpikeGuard
from training.offload import MappedFiles, initialise_in_files, made_in_files
from training.optimizers import Optimizer
from training.stopwatch import Stopwatch, TimedCollectives

# torch announces new names for collectives that DeepSpeed calls, once a call site and rank.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")

# For all-reduces of inference on CPUs, DeepSpeed would compile an operator at the first start: most of a minute, a C++
# compiler needed, and a lock that outlives a killed process. Training never calls it.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# DeepSpeed asks whether an optimizer is its Muon, and compiles that one's kernels to know: seconds at each start.
with mock.patch.object(deepspeed_compiler, "compile", lambda: deepspeed_compiler.dummy_decorator):
    import deepspeed.runtime.zero.muon.muon_optimizer

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


LOSS_SCALING = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""All that changes of DeepSpeed's dynamic loss scale."""


class NonFiniteUpdate(Exception):
    """A loss or the gradient of an update is infinite or not a number. Raised on every rank, before the update.

    losses: this rank's, micro-batch by micro-batch. loss_is_finite: of all ranks; then it is the gradient.
    """

    def __init__(self, losses: list[float], loss_is_finite: bool) -> None:
        super().__init__("the gradient is not finite" if loss_is_finite else f"losses on this rank are {losses}")
        self.losses = losses
        self.loss_is_finite = loss_is_finite


class Engine:
    """A trainable module under DeepSpeed ZeRO, with its optimizer.

    Call it like the module. `backward` once for each of `accumulation` micro-batches and `step` after each; the
    weights change at the last. `times` are the parts "backward", "optimizer" and, on CPUs, "communication", which is
    part of these two and, under ZeRO 3, of the forward pass. guard: says which updates are left out, None: none.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: EngineSettings,
        optimizer: Optimizer,
        micro_batch: int,
        accumulation: int,
        world: int,
        guard: SpikeGuard | None = None,
    ) -> None:
        # Names are taken before ZeRO 3 replaces the parameters' data.
        self._shapes = {name: list(p.shape) for name, p in module.named_parameters() if p.requires_grad}
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        self._decays: dict[str, float] = {n: decays[id(p)] for n, p in module.named_parameters() if p.requires_grad}
        if not torch.distributed.is_initialized():
            become_a_group_of_one()
        if torch.distributed.get_backend() == "gloo":
            stage_1_and_2.all_gather_dp_groups = all_gather_by_broadcasts
        self._files = MappedFiles(settings.offload_folder)
        with made_in_files(stage3.DeepSpeedZeroOptimizer_Stage3, self._files, settings):
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                config=settings.deepspeed_config(micro_batch, accumulation, world),
                dist_init_required=False,
            )
        if settings.compile is not None:
            self._engine.module.compile(mode=settings.compile)  # in place: its parameters keep their names
        self.settings = settings
        self.times = Stopwatch(self.device)
        if self.device.type == "cpu":  # a GPU does them beside others, and later than it is told to
            _time_collectives(self.times)
        self._optimizer = optimizer
        self.updates = 0
        self.losses = torch.empty(0)
        """This rank's micro-batches' at the last update, float32 [accumulation]."""
        self.guard = guard
        self.left_out: str | None = None
        """Why the guard had the last update left out; None: it was made."""
        self._losses: list[torch.Tensor] = []  # of the micro-batches since the last update
        self._norm: torch.Tensor | None = None  # of the gradient without ZeRO, where DeepSpeed doesn't tell
        self._judged = False
        if guard is not None:
            optimizer.ask_before_steps(self._leaves_out)
        self._state = LAYOUTS[settings.zero_stage](
            self._engine.module, optimizer, self._zero, self._shapes, torch.distributed.get_rank()
        )
        if settings.state_in_files:
            initialise_in_files(optimizer, self._state.masters(), self._files)
        else:
            optimizer.initialise(self._state.masters())
        self._state.link()

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return torch.device(self._engine.device)

    @property
    def module(self) -> nn.Module:
        """What is trained, to be looked at: under ZeRO 3 its parameters are shards."""
        module: nn.Module = self._engine.module
        return module

    @property
    def dtype(self) -> torch.dtype:
        """What floating-point inputs must be: the precision that the module computes in."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.settings.precision]

    @property
    def kinds(self) -> tuple[str, ...]:
        """What `fragments` holds of every parameter: weights, the optimizer's moments, and averages of the weights."""
        return self._optimizer.kinds

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shape of every trainable parameter, by name."""
        return self._shapes

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulates gradients of one micro-batch's mean loss."""
        self._losses.append(loss.detach())
        with self.times.part("backward"):
            self._engine.backward(loss)

    def step(self, learning_rate: float) -> bool:
        """Ends a micro-batch; updates the weights at the last of the accumulation and then returns True.

        Raises NonFiniteUpdate in place of an update by a loss or gradient that is infinite or not a number. With fp16
        such a gradient isn't wrong: DeepSpeed leaves the update out and lowers its loss scale.
        """
        with self.times.part("optimizer"):
            return self._step(learning_rate)

    @contextlib.contextmanager
    def whole(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Within it these parameters of the module hold their values, to be read; else ZeRO 3 holds shards of them.

        A collective.
        """
        shards = self.settings.zero_stage == 3
        with deepspeed.zero.GatheredParameters(parameters) if shards else contextlib.nullcontext():
            yield

    def gradient_norm(self) -> float | None:
        """Global gradient norm at the last update, before clipping; None before the first."""
        norm = self._engine.get_global_grad_norm() if self._norm is None else self._norm
        return None if norm is None else float(norm)

    @property
    def ema_decay(self) -> float:
        """Of the average that is looked at, at the last update; before the first one, at that."""
        return self._optimizer.averages[AVERAGE].at(torch.tensor(float(max(1, self.updates)))).item()

    @torch.no_grad()
    def update_squares(self) -> torch.Tensor:
        """Sums of squares of the last update's changes and of the weights, of this rank's fragments: float32 [2].

        Over all ranks, the root of their ratio is ‖Δw‖ / ‖w‖ at every ZeRO stage; where every rank holds all weights,
        both are counted as often.
        """
        fragments = ((fragment.tensors, self._decays[fragment.parameter]) for fragment in self.fragments())
        return self._optimizer.update_squares(fragments, self.updates).to(self.device)

    def fragments(self) -> Iterator[LocalFragment]:
        """Yields what this rank holds of every parameter: fp32 weights, the optimizer's moments, averages."""
        for fragment in self._state.fragments():
            yield fragment
            if self.settings.state_in_files:
                self.release(fragment.tensors.values())

    def release(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        """Says that these, of fragments, have been read or written: what lies in files needn't be in memory now."""
        self._files.release(tensors)

    def writable(self) -> contextlib.AbstractContextManager[None]:
        """Within it all tensors of `fragments` may be written to; moments of 8 bits are rounded at its end."""
        return self._optimizer.writable()

    def set_updates(self, updates: int) -> None:
        """Tells the optimizer how many updates its restored moments stand for."""
        self.updates = updates
        for tensor in self._state.masters():
            self._optimizer.state[tensor]["step"].fill_(updates)

    @property
    def loss_scaling(self) -> dict[str, float]:
        """What fp16 multiplies the loss by, and what that depends on; empty with other precisions."""
        if self.settings.precision != "fp16":
            return {}
        return {name: getattr(self._zero.loss_scaler, name) for name in LOSS_SCALING}

    def set_loss_scaling(self, scaling: Mapping[str, float]) -> None:
        """Goes on with what `loss_scaling` was. Other precisions have nothing to go on with."""
        if self.settings.precision == "fp16":
            for name in LOSS_SCALING:
                setattr(self._zero.loss_scaler, name, scaling[name])

    @torch.no_grad()
    def publish_weights(self) -> None:
        """Makes the module compute with the fp32 weights in `fragments`, after these were written to."""
        self._state.publish()
        self.release()

    def gather(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, whole tensor) of one kind for every parameter, float32, on every rank.

        A collective: every rank must exhaust it. Holds one parameter at a time.
        """
        held = {fragment.parameter: fragment for fragment in self.fragments()}
        for name, shape in self._shapes.items():
            whole = torch.zeros(shape, dtype=torch.float32, device=self.device)
            fragment = held.get(name)
            if fragment is not None and fragment.written_here:
                whole.view(-1)[fragment.start : fragment.stop] = fragment.tensors[kind]
                self.release([fragment.tensors[kind]])
            torch.distributed.all_reduce(whole)
            yield name, whole

    def _step(self, learning_rate: float) -> bool:
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return False
        self.losses = losses = torch.stack(self._losses).float()
        self._losses = []
        self._judged, self.left_out = False, None
        if not self._finite_everywhere(losses):
            raise NonFiniteUpdate(losses.tolist(), loss_is_finite=False)
        for group in (*self._optimizer.param_groups, *self._zero.param_groups):
            group["lr"] = learning_rate
        # ZeRO leaves out an update by such a gradient itself, and says so afterwards. Without ZeRO nothing does.
        finite = self.settings.zero_stage > 0 or self._gradient_is_finite()
        if finite:
            self._engine.step()
            finite = self._engine.was_step_applied()
        if not finite and self.settings.precision != "fp16":
            raise NonFiniteUpdate(losses.tolist(), loss_is_finite=True)
        self.updates += finite and self.left_out is None
        self.release()
        return True

    def _leaves_out(self) -> bool:
        """Whether the guard has this update left out. The optimizer asks, once for each part of the weights, when all
        that there is to judge by is known. A collective."""
        assert self.guard is not None
        if not self._judged:
            loss = self.losses.mean()
            deepspeed.comm.all_reduce(loss)
            norm = self._zero._global_grad_norm if self._norm is None else self._norm
            # The main rank's numbers, to the last bit, so that all ranks decide alike.
            numbers = torch.tensor([float(loss) / torch.distributed.get_world_size(), float(norm)], device=self.device)
            deepspeed.comm.broadcast(numbers, 0)
            self.left_out = self.guard.judge(*numbers.tolist())
            self._judged = True
        return self.left_out is not None

    def _finite_everywhere(self, losses: torch.Tensor) -> bool:
        """Whether all losses of all ranks are. A loss may be infinite and its gradient finite."""
        wrong = losses.isfinite().logical_not().sum()
        deepspeed.comm.all_reduce(wrong)
        return not wrong

    def _gradient_is_finite(self) -> bool:
        """For ZeRO 0, where every rank holds the whole gradient."""
        gradients = [parameter.grad for _, parameter in self._state.named() if parameter.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)
        return bool(self._norm.isfinite())


def _time_collectives(times: Stopwatch) -> None:
    """From now on those of every engine of this process are timed; the newest engine tells for all."""
    backend = deepspeed.comm.comm.cdb
    if isinstance(backend, TimedCollectives):
        backend = backend.backend
    deepspeed.comm.comm.cdb = TimedCollectives(backend, times)
