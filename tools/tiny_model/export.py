"""Puts a trained model into the package, with its model card.

python -m tools.tiny_model.export DIR            # DIR: what `train` wrote
python -m tools.tiny_model.export --evaluation evaluation.json   # the card alone
"""

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer

from tools.tiny_model.files import ASSETS, write_folder
from tools.tiny_model.parameters import network_weights
from tools.tiny_model.shape import ModelShape

MAX_BYTES = 8_000_000
MEANINGS = {
    "describe": ("what is in a picture", "A red circle and two blue squares."),
    "shape": ("what the shape of one colour is", "The red shape is a circle."),
    "count": ("how many", "There are two blue squares."),
    "colour": ("which colour", "The circle is red."),
    "where": ("where (nine places)", "The red circle is in the top left corner."),
    "yes_no": ("is there a ...", "Yes, there is a red circle."),
    "which_has_more": ("which of two pictures has more", "The second picture has more circles."),
    "count_one_of_two": ("how many in one of two pictures", "There is one circle in the second picture."),
    "describe_one_of_two": ("what is in one of two pictures", "Two yellow triangles."),
    "video_direction": ("which way does it move", "The circle moves to the left."),
    "video_what": ("what happens in a video", "A red circle moves to the left."),
    "video_colour": ("which colour, in a video", "The circle is red."),
    "count_text": ("counting from a to b", "3, 4, 5, 6, 7."),
    "sum": ("sums of numbers up to 12", "3 plus 4 is 7."),
    "greeting": ("greetings and who it is", "Hello! Show me a picture ..."),
}


def export(run: Path, folder: Path) -> None:
    """Checks the weights of a run against the architecture and copies them beside freshly written configuration."""
    shape = ModelShape()
    tensors = load_file(run / "model.safetensors")
    expected = {name: part for weight in network_weights(shape) for name, part in weight.parts}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise ValueError(f"{run / 'model.safetensors'} does not have the tensors of {shape}")
    write_folder(folder, shape, Tokenizer.from_file(str(run / "tokenizer.json")))
    target = folder / "model.safetensors"
    shutil.copyfile(run / "model.safetensors", target)
    target.chmod(0o644)
    if target.stat().st_size > MAX_BYTES:
        raise ValueError(f"{target} has {target.stat().st_size} bytes, at most {MAX_BYTES} are shipped")


def model_card(evaluation: dict[str, object], training: list[dict[str, object]]) -> str:
    """README.md of the checkpoint: what it is, what it was measured to do, what it cannot do."""
    exact, questions = evaluation["exact"], evaluation["questions"]
    assert isinstance(exact, dict) and isinstance(questions, dict)
    rows = [
        f"| {kind} | {MEANINGS[kind][0]} | {MEANINGS[kind][1]} | {questions[kind]} | {100 * rate:.1f} % |"
        for kind, rate in exact.items()
    ]
    length = _training_length(training)
    return _CARD.format(rows="\n".join(rows), length=length, seed=evaluation["seed"])


def _training_length(training: list[dict[str, object]]) -> str:
    """How long the runs whose logs stand one after the other in `training` were; each log begins with its settings."""
    runs: list[dict[str, object]] = []
    for line in training:
        if "minutes" in line:
            runs.append(line)
        elif runs:
            runs[-1] = {**runs[-1], **line}
    if not runs:
        return ""
    minutes = " and ".join(f"{float(str(run['minutes'])):.0f}" for run in runs)
    steps, samples = (sum(int(str(run[key])) for run in runs) for key in ("step", "samples"))
    more = ", the later runs going on where the one before ended" if len(runs) > 1 else ""
    return (
        f"\nThe shipped weights come from {minutes} minutes on one NVIDIA H200{more}: "
        f"{steps:,} steps, {samples:,} conversations, each drawn once.\n"
    )


_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# The small model of Triptych

A Qwen2.5-VL-architecture checkpoint of 3.8 million parameters (7.7 MB in bfloat16) that sees coloured shapes. It is
what `triptych` serves when no other model is named, and what the tests run on. It was trained from nothing by
`tools/tiny_model/` on pictures that the project draws itself; no other data was used.

## What it answers

Circles, squares and triangles in red, orange, yellow, green, blue and purple, one to five to a picture, on plain light
or dark backgrounds; one picture, two pictures, or a short video of one moving shape; conversations of up to five turns;
a little text. Exact answers, word for word, greedy generation in float32 through transformers, on pictures drawn from a
seed that training never used (`{seed}`):

| kind | asks | answers | questions | exact |
|---|---|---|---|---|
{rows}

Measure again: `python -m tools.tiny_model.evaluate triptych/assets/tiny --questions 200`.

## How it was trained
{length}
See `tools/tiny_model/README.md`; the log of the training is in `training.jsonl`.

## What it cannot do

Anything else. It knows no other shapes, colours or questions than those above, answers with confidence where it has
seen nothing like the picture, and has about a thousand tokens of vocabulary. Pictures are scaled to at most 224 x 224
pixels in area (videos to 112 x 112, eight frames): shapes smaller than a fourteenth of a picture's side are lost.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="the folder that a training run wrote")
    parser.add_argument("--to", type=Path, default=ASSETS)
    parser.add_argument("--earlier", type=Path, nargs="*", default=(), help="folders of the runs that it went on from")
    parser.add_argument("--evaluation", type=Path, help="JSON of `evaluate`; default: the run's own")
    arguments = parser.parse_args()
    training: list[dict[str, object]] = []
    log = arguments.to / "training.jsonl"
    if arguments.run is not None:
        export(arguments.run, arguments.to)
        logs = [run / "training.jsonl" for run in (*arguments.earlier, arguments.run)]
        log.write_text("".join(part.read_text(encoding="utf-8") for part in logs), encoding="utf-8")
    if log.exists():
        training = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    evaluation = json.loads((arguments.evaluation or arguments.run / "evaluation.json").read_text(encoding="utf-8"))
    (arguments.to / "README.md").write_text(model_card(evaluation, training), encoding="utf-8")


if __name__ == "__main__":
    main()
