"""JPEG bytes to patches on the GPU, with the share of each step: `python -m benchmarks.encoder_bench.media --out FILE`.

`jpegs_to_patches` is a row of the encoder's benchmark. Run alone, this also tells how near nvJPEG's pixels are to
Pillow's, and what other batch sizes and kinds of files cost.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.encoder_bench.bench import EncoderBench, Measured
from encoder_service.items import MediaItem
from encoder_service.media.cpu import CpuPatchLoader
from encoder_service.media.gpu import GpuPatchLoader
from encoder_service.media.jpeg_decoder import NvJpegDecoder
from encoder_service.media.loader import PatchLoader
from encoder_service.media.patcher import FramePatcher
from encoder_service.media.prepared import EncodedJpeg, PreparedMedia
from triptych.config import EncoderSection
from triptych.media import content_key
from triptych.media.layout import media_layout
from triptych.v1 import common_pb2

_MEDIA_THREADS = 8
_WARM_UP = 5


def jpegs_to_patches(bench: EncoderBench, name: str = "1080p", count: int = 8) -> Measured:
    """Milliseconds from `count` JPEG files to their patches, the header checks on the media threads included."""
    items = media_items(bench, name, count)
    loader = gpu_loader(bench)
    with ThreadPoolExecutor(_MEDIA_THREADS) as threads:

        def prepared() -> list[PreparedMedia]:
            return list(threads.map(loader.prepare, items))

        def whole() -> None:
            pack(loader, prepared())

        samples = timed_ms(whole, bench)
        media = prepared()
        details: dict[str, object] = {
            "prepare_ms": statistics.median(timed_ms(prepared, bench)),
            "pack_ms": statistics.median(timed_ms(lambda: pack(loader, media), bench)),
            "file_bytes": statistics.mean(len(item.media.data) for item in items),
        }
    if bench.device.type == "cuda":
        details |= _shares(bench, media)
    return Measured(samples, details)


def media_items(bench: EncoderBench, name: str, count: int) -> list[MediaItem]:
    return [media_item(bench, data) for data in bench.jpegs(name, count)]


def media_item(bench: EncoderBench, data: bytes) -> MediaItem:
    media = common_pb2.Media(kind=common_pb2.MEDIA_KIND_IMAGE, data=data)
    grid = media_layout(media, bench.processing, bench.limits, "media").grid
    return MediaItem(content_key(media), grid, media, "media")


def gpu_loader(bench: EncoderBench) -> GpuPatchLoader:
    """With nvJPEG where there is a GPU; on a CPU the same steps in plain torch."""
    decoder = NvJpegDecoder.open(bench.device) if bench.device.type == "cuda" else None
    return GpuPatchLoader(bench.processing, bench.limits, EncoderSection(), bench.device, bench.dtype, decoder)


def pack(loader: PatchLoader, media: list[PreparedMedia]) -> Tensor:
    packed = loader.pack(media)
    assert packed.errors == (None,) * len(media), packed.errors
    if packed.ready is not None:
        packed.ready.synchronize()
    return packed.patches


def timed_ms(work: Callable[[], object], bench: EncoderBench) -> list[float]:
    """By the wall clock; `work` waits for what it starts."""
    samples = []
    for index in range(_WARM_UP + bench.repeats):
        started = time.perf_counter()
        work()
        if index >= _WARM_UP:
            samples.append((time.perf_counter() - started) * 1e3)
    return samples


def _shares(bench: EncoderBench, media: list[PreparedMedia]) -> dict[str, object]:
    """Milliseconds of decoding, and of resizing with all that follows by the GPU's clock."""
    decoder, patcher = NvJpegDecoder(bench.device), FramePatcher(bench.processing.image, bench.device)
    jpegs = [item.content for item in media if isinstance(item.content, EncodedJpeg)]
    decoded = decoder.decode(jpegs)
    frames = [pixels[None] for pixels in decoded if pixels is not None]
    assert len(frames) == len(media)
    shapes = [(item.num_patches, patcher.patch_dim) for item in media]
    outs = [torch.empty(shape, dtype=bench.dtype, device=bench.device) for shape in shapes]

    def patch() -> None:
        for pixels, item, out in zip(frames, media, outs, strict=True):
            patcher.patch(pixels, item.resized, out)

    def patch_and_wait() -> None:
        patch()
        torch.cuda.synchronize()

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    gpu_ms = []
    for _ in range(_WARM_UP + bench.repeats):
        # Enough before it that the queue is never empty: launches cost the host more than these kernels the GPU.
        torch.cuda._sleep(4_000_000)  # type: ignore[no-untyped-call]
        start.record()  # type: ignore[no-untyped-call]
        patch()
        end.record()  # type: ignore[no-untyped-call]
        end.synchronize()  # type: ignore[no-untyped-call]
        gpu_ms.append(start.elapsed_time(end))  # type: ignore[no-untyped-call]
    return {
        "decode_ms": statistics.median(timed_ms(lambda: decoder.decode(jpegs), bench)),
        "resize_and_patchify_ms": statistics.median(timed_ms(patch_and_wait, bench)),
        "resize_and_patchify_gpu_ms": statistics.median(gpu_ms[_WARM_UP:]),
    }


def decode_variants(bench: EncoderBench) -> dict[str, float]:
    """Milliseconds a picture of 1080p, decoded alone, in batches, and progressive; and by Pillow on one core."""
    decoder = NvJpegDecoder(bench.device)
    width, height = bench.size("1080p")
    files = bench.jpegs("1080p", 16)
    table = {}
    for batch in (1, 2, 4, 8, 16):
        jpegs = [EncodedJpeg(data, height, width, 1) for data in files[:batch]]
        table[f"batch_{batch}"] = statistics.median(timed_ms(lambda: decoder.decode(jpegs), bench)) / batch  # noqa: B023
    for kind, options in (("progressive", {"progressive": True}), ("4:4:4", {"subsampling": 0})):
        file = io.BytesIO()
        Image.open(io.BytesIO(files[0])).save(file, "JPEG", quality=88, **options)
        jpegs = [EncodedJpeg(file.getvalue(), height, width, 1)] * 4
        table[f"{kind}_batch_4"] = statistics.median(timed_ms(lambda: decoder.decode(jpegs), bench)) / 4  # noqa: B023
        if kind == "progressive":
            table["progressive_pillow"] = min(timed_ms(lambda: Image.open(file).convert("RGB"), bench))  # noqa: B023
    table["pillow"] = min(timed_ms(lambda: Image.open(io.BytesIO(files[0])).convert("RGB"), bench))
    return table


def fidelity(bench: EncoderBench) -> dict[str, dict[str, float]]:
    """How far patches of nvJPEG's pixels are from those of Pillow's, in levels of 0 to 255."""
    gpu = gpu_loader(bench)
    cpu = CpuPatchLoader(bench.processing, bench.limits, bench.device, torch.float32)
    table = {}
    for name, data in _fidelity_files(bench).items():
        item = media_item(bench, data)
        patches = [pack(loader, [loader.prepare(item)]).float() for loader in (gpu, cpu)]
        deviation = torch.tensor(bench.processing.image.std, device=bench.device).mul_(255).view(3, 1)
        levels = ((patches[0] - patches[1]).view(-1, 3, patches[0].shape[1] // 3) * deviation).abs().flatten().cpu()
        error = float(levels.square().mean())
        table[name] = {
            "mean": float(levels.mean()),
            "p99": float(np.percentile(levels.numpy(), 99)),
            "max": float(levels.max()),
            "psnr_db": 10 * float(np.log10(255**2 / error)) if error else float("inf"),
        }
    return table


def _fidelity_files(bench: EncoderBench) -> dict[str, bytes]:
    soft = Image.open(io.BytesIO(bench.jpegs("1080p", 1)[0]))
    random = np.random.default_rng(0)
    blocks = Image.fromarray(random.integers(0, 256, (30, 50, 3), dtype=np.uint8)).resize(soft.size, 0)
    files = {}
    for name, image in (("soft", soft), ("hard edges", blocks)):
        for sampling, subsampling in (("4:4:4", 0), ("4:2:0", 2)):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=88, subsampling=subsampling)
            files[f"{name} {sampling}"] = file.getvalue()
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="small pictures, few repetitions")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    report: dict[str, object] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        bench = EncoderBench(Path(folder) / "model", device, dtype, arguments.quick, 3 if arguments.quick else 20)
        for name, count in (("1080p", 8), ("720p", 1), ("720p", 8), ("1080p", 1)):
            measured = jpegs_to_patches(bench, name, count)
            row = {"median_ms": statistics.median(measured.samples), "samples": measured.samples, **measured.details}
            report[f"{count} x {name}"] = row
            print(f"{count} x {name}", {key: value for key, value in row.items() if key != "samples"}, flush=True)
        if device.type == "cuda":
            report["decode_ms_a_picture"] = decode_variants(bench)
            print(report["decode_ms_a_picture"], flush=True)
        # Differences are those of the pixels, not of bfloat16.
        exact = EncoderBench(Path(folder) / "exact", device, torch.float32, arguments.quick, 1)
        report["fidelity_levels"] = fidelity(exact)
        print(json.dumps(report["fidelity_levels"], indent=1), flush=True)
        arguments.out.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
