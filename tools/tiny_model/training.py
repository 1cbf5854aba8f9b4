"""The training loop: draw, step, report, and stop by the clock."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.tiny_model.attention import SegmentAttention, padded_attention, pick_attention
from tools.tiny_model.loader import DeviceBatch
from tools.tiny_model.network import Network
from tools.tiny_model.parameters import FlatParameters, dense_head_weights, network_weights
from tools.tiny_model.samples import IGNORED_CELL, NUM_CELL_CLASSES
from tools.tiny_model.shape import ModelShape
from triptych.demo.questions import KINDS


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How long and how fast to learn. `dense_fraction` of the time has the dense loss."""

    minutes: float
    peak_rate: float = 1.5e-3
    warmup_steps: int = 300
    final_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.97)
    weight_decay: float = 0.05
    max_gradient_norm: float = 1.0
    dense_fraction: float = 0.6
    background_weight: float = 0.3
    average_decay: float = 0.998
    report_every_s: float = 15.0
    accuracy_every_s: float = 90.0
    seed: int = 0


class Trainer:
    """Owns the weights, the optimizer and the running figures."""

    def __init__(self, shape: ModelShape, settings: TrainingSettings, device: torch.device) -> None:
        self._shape, self._settings, self._device = shape, settings, device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        weights = [*network_weights(shape), *dense_head_weights(shape, NUM_CELL_CLASSES)]
        self.parameters = FlatParameters(weights, device, dtype, settings.seed)
        self._attention: SegmentAttention = pick_attention(device, shape.vision_heads, shape.vision_head_dim)
        self._network = Network(shape, self.parameters.tensors, self._attention, device)
        decayed = self.parameters.num_decayed
        master = self.parameters.master
        self._groups = [master[:decayed], master[decayed:]]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [self._groups[0]], "weight_decay": settings.weight_decay},
                {"params": [self._groups[1]], "weight_decay": 0.0},
            ],
            lr=settings.peak_rate,
            betas=settings.betas,
            fused=device.type == "cuda",
        )
        self._average = master.clone()
        self._class_weights = torch.ones(NUM_CELL_CLASSES, device=device)
        self._class_weights[0] = settings.background_weight
        self._sums = torch.zeros(4, device=device)  # loss, dense loss, gradient norm, skipped steps
        self._right = torch.zeros(len(KINDS), device=device)
        self._asked = torch.zeros(len(KINDS), device=device)
        self.step_count = 0
        self.num_samples = 0

    def train(self, next_batch: Callable[[], DeviceBatch], log: Callable[[dict[str, object]], None]) -> None:
        """Steps until the time is over."""
        settings = self._settings
        total_s = settings.minutes * 60.0
        start = last_report = last_accuracy = time.monotonic()
        reported_steps, reported_samples, waited_s = self.step_count, self.num_samples, 0.0
        while True:
            now = time.monotonic()
            done = (now - start) / total_s
            if done >= 1.0:
                break
            batch = next_batch()
            waited_s += time.monotonic() - now
            self._guarded_step(batch, done)
            if self.step_count % 16 == 0:
                self._synchronize()
            if self.step_count == 1 or time.monotonic() - last_report >= settings.report_every_s:
                self._synchronize()
                passed = time.monotonic() - last_report
                steps = self.step_count - reported_steps
                loss, dense, norm, skipped = (self._sums / max(steps, 1)).tolist()
                line: dict[str, object] = {
                    "seconds": round(time.monotonic() - start, 1),
                    "step": self.step_count,
                    "samples": self.num_samples,
                    "samples_per_s": round((self.num_samples - reported_samples) / passed),
                    "step_ms": round(1000.0 * passed / max(steps, 1), 1),
                    "waiting": round(waited_s / passed, 2),
                    "loss": round(loss, 4),
                    "dense_loss": round(dense, 4),
                    "gradient_norm": round(norm, 3),
                    "skipped": round(skipped * steps),
                }
                if time.monotonic() - last_accuracy >= settings.accuracy_every_s or done > 0.9:
                    line["exact"] = self._accuracy()
                    last_accuracy = time.monotonic()
                log(line)
                self._sums.zero_()
                last_report, reported_steps, reported_samples = time.monotonic(), self.step_count, self.num_samples
                waited_s = 0.0
        self._synchronize()
        log({"finished_s": round(time.monotonic() - start, 1), "step": self.step_count, "exact": self._accuracy()})

    def checkpoint(self) -> dict[str, Tensor]:
        """The averaged weights in bfloat16 under a real checkpoint's names."""
        return self.parameters.checkpoint(self._average, torch.bfloat16)

    def save_state(self, folder: Path) -> None:
        """What `load_state` needs to go on, in files below 16 MiB."""
        folder.mkdir(parents=True, exist_ok=True)
        counters = {"steps": str(self.step_count), "samples": str(self.num_samples)}
        save_file({"values": self.parameters.master.cpu()}, folder / "master.safetensors", counters)
        for name in ("exp_avg", "exp_avg_sq"):
            moments = [
                self._optimizer.state[group][name].cpu() for group in self._groups if self._optimizer.state[group]
            ]
            if moments:
                save_file({"values": torch.cat(moments)}, folder / f"{name}.safetensors")

    def load_state(self, folder: Path) -> None:
        """Weights and moments of an earlier run; the rate's schedule starts anew."""
        master = load_file(folder / "master.safetensors")["values"]
        if master.shape != self.parameters.master.shape:
            raise ValueError(f"{folder} holds {len(master)} weights, this network has {len(self.parameters.master)}")
        self.parameters.master.copy_(master)
        self.parameters.publish()
        self._average.copy_(self.parameters.master)
        decayed = self.parameters.num_decayed
        moments = {}
        for name in ("exp_avg", "exp_avg_sq"):
            values = load_file(folder / f"{name}.safetensors")["values"].to(self._device)
            moments[name] = (values[:decayed].clone(), values[decayed:].clone())
        for index, group in enumerate(self._groups):
            step = torch.tensor(1000.0, device=self._device if self._device.type == "cuda" else None)
            self._optimizer.state[group] = {"step": step, **{name: values[index] for name, values in moments.items()}}

    def _guarded_step(self, batch: DeviceBatch, done: float) -> None:
        """A step; if the very first fails on the varlen kernel, once more with padding."""
        try:
            self._step(batch, done)
        except RuntimeError as error:
            if self.step_count > 0 or self._attention is padded_attention:
                raise
            print(f"the first step failed with varlen attention, padding instead: {error}", flush=True)
            self._attention = padded_attention
            self._network = Network(self._shape, self.parameters.tensors, padded_attention, self._device)
            self.parameters.gradient.zero_()
            self._step(batch, done)

    def _step(self, batch: DeviceBatch, done: float) -> None:
        tensors = batch.tensors
        vision = self._network.encode(tensors, self._network.pixel_values(tensors))
        logits = self._network.logits(tensors, vision)
        losses = functional.cross_entropy(logits.float(), tensors["labels"], reduction="none")
        weights = tensors["label_weights"]
        loss = (losses * weights).sum() / weights.sum()
        dense_weight = self._dense_weight(done)
        total = loss
        if dense_weight > 0.0:
            dense_logits = functional.linear(
                vision, self.parameters.tensors["dense.weight"], self.parameters.tensors["dense.bias"]
            )
            dense = functional.cross_entropy(
                dense_logits.float(), tensors["cell_classes"], self._class_weights, ignore_index=IGNORED_CELL
            )
            total = loss + dense_weight * dense
            self._sums[1] += dense.detach()
        torch.autograd.backward(total)
        self._update(done)
        with torch.no_grad():
            self._sums[0] += loss.detach()
            self._count_exact(logits, tensors)
        self.step_count += 1
        self.num_samples += batch.num_samples

    @torch.no_grad()
    def _update(self, done: float) -> None:
        """Clips, steps, averages, publishes. A gradient that is not finite counts as zero."""
        settings, parameters = self._settings, self.parameters
        gradient = parameters.gradient.float()
        norm = torch.linalg.vector_norm(gradient)
        finite = torch.isfinite(norm)
        scale = torch.where(finite, (settings.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0), torch.zeros_like(norm))
        gradient = torch.where(finite, gradient * scale, torch.zeros_like(gradient))
        self._sums[2] += torch.where(finite, norm, torch.zeros_like(norm))
        self._sums[3] += (~finite).float()
        decayed = parameters.num_decayed
        self._groups[0].grad, self._groups[1].grad = gradient[:decayed], gradient[decayed:]
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(done)
        self._optimizer.step()
        parameters.publish()
        parameters.gradient.zero_()
        decay = min(settings.average_decay, (1.0 + self.step_count) / (10.0 + self.step_count))
        self._average.lerp_(parameters.master, 1.0 - decay)

    def _rate(self, done: float) -> float:
        settings = self._settings
        warmup = min(1.0, (self.step_count + 1) / settings.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return warmup * (settings.final_rate + (settings.peak_rate - settings.final_rate) * cosine)

    def _dense_weight(self, done: float) -> float:
        """1 until half of the dense part, then a straight line to 0."""
        if done >= self._settings.dense_fraction:
            return 0.0
        return min(1.0, 2.0 * (1.0 - done / self._settings.dense_fraction))

    def _count_exact(self, logits: Tensor, tensors: dict[str, Tensor]) -> None:
        """An answer is exact when each of its tokens is the likeliest: then greedy generation gives the same answer.
        Every conversation is drawn once, so this is accuracy on fresh pictures."""
        kinds = tensors["kinds"]
        wrong = torch.zeros(len(kinds), device=self._device)
        wrong.index_add_(0, tensors["answer_of"], (logits.argmax(-1) != tensors["labels"]).float())
        self._right.index_add_(0, kinds, (wrong == 0).float())
        self._asked.index_add_(0, kinds, torch.ones_like(wrong))

    def _accuracy(self) -> dict[str, float]:
        """Exact answers for each kind since the last call."""
        rates = (self._right / self._asked.clamp(min=1.0)).tolist()
        self._right.zero_()
        self._asked.zero_()
        return {kind: round(rate, 4) for kind, rate in zip(KINDS, rates, strict=True)}

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


class Log:
    """Lines to the terminal and to a file."""

    def __init__(self, path: Path, settings: TrainingSettings) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self(dict(asdict(settings)))

    def __call__(self, line: dict[str, object]) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        self._file.write(text + "\n")
        self._file.flush()
