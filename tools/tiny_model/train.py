"""Trains the small model and writes its weights, a log, and what a later run needs to go on.

    python -m tools.tiny_model.train --minutes 8 --out DIR

On one H200 eight minutes are enough (see README.md); on two CPU cores it takes hours. `DIR` receives
`model.safetensors`, `training.jsonl`, `evaluation.json`, `tokenizer.json` and `state/`.
"""

import argparse
import json
import os
import time
import traceback
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tokenizers import Tokenizer

from tools.tiny_model.files import load_tokenizer, write_folder, write_weights
from tools.tiny_model.loader import DeviceLoader
from tools.tiny_model.samples import BatchBuilder, SampleEncoder
from tools.tiny_model.shape import ModelShape
from tools.tiny_model.training import Log, Trainer, TrainingSettings
from tools.tiny_model.workers import BatchWorkers

PATCHES_A_ROW = 640
BYTES_A_PATCH = 2 * 3 * 14 * 14 + 64


def main() -> None:
    arguments = _arguments()
    shape = ModelShape()
    tokenizer = load_tokenizer()
    # The workers are forked before CUDA or any thread starts.
    builder = BatchBuilder(
        SampleEncoder(tokenizer, shape), shape, arguments.rows, arguments.row_length, arguments.rows * PATCHES_A_ROW
    )
    slot_bytes = arguments.rows * (PATCHES_A_ROW * BYTES_A_PATCH + arguments.row_length * 32) + (1 << 20)
    workers = BatchWorkers(builder, arguments.workers, arguments.seed, slot_bytes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - arguments.workers))
    else:
        # Of the kernels that take a mask, the memory-efficient one is the best tried with -inf in it.
        torch.backends.cuda.enable_cudnn_sdp(False)
    settings = TrainingSettings(
        arguments.minutes, arguments.rate, dense_fraction=arguments.dense_fraction, seed=arguments.seed
    )
    log = Log(arguments.out / "training.jsonl", settings)
    trainer = Trainer(shape, settings, device)
    if arguments.resume is not None:
        trainer.load_state(arguments.resume)
    loader = DeviceLoader(workers, device)

    def report(line: dict[str, object]) -> None:
        log(line)
        if "exact" in line:  # a run that is cut short leaves something behind
            write_weights(arguments.out, trainer.checkpoint())

    try:
        trainer.train(loader.next, report)
    except Exception:
        traceback.print_exc()  # what was learned so far is worth keeping
    workers.stop()
    write_weights(arguments.out, trainer.checkpoint())
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    trainer.save_state(arguments.out / "state")
    print(f"saved to {arguments.out}", flush=True)
    if arguments.evaluate > 0:
        try:
            _evaluate(arguments, shape, tokenizer, trainer, device)
        except Exception:
            traceback.print_exc()  # the weights are saved; `evaluate` can be run on its own


def _evaluate(
    arguments: argparse.Namespace, shape: ModelShape, tokenizer: Tokenizer, trainer: Trainer, device: torch.device
) -> None:
    from tools.tiny_model.evaluate import Evaluator

    folder = arguments.scratch / f"tiny-{os.getpid()}"
    write_folder(folder, shape, tokenizer)
    write_weights(folder, trainer.checkpoint())
    start = time.monotonic()
    result = Evaluator(folder, device).evaluate(
        arguments.evaluate, "evaluation", arguments.evaluation_batch, limit_s=arguments.evaluation_limit_s
    )
    (arguments.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("\n".join(result["wrong"]), flush=True)  # type: ignore[arg-type]
    print(f"evaluation took {time.monotonic() - start:.0f} s", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for training alone")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="the state/ folder of an earlier run")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="drawing processes")
    parser.add_argument("--rows", type=int, default=64, help="packed rows of a batch")
    parser.add_argument("--row-length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--dense-fraction", type=float, default=0.6, help="part of the time with the dense loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", type=int, default=200, help="questions of each kind after training; 0 for none")
    parser.add_argument("--evaluation-batch", type=int, default=100)
    parser.add_argument("--evaluation-limit-s", type=float, default=60.0)
    parser.add_argument(
        "--scratch", type=Path, default=Path("/tmp"), help="where the evaluated checkpoint folder is put"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
