"""The shipped model answers the same when pixels differ as much as JPEG decoders do."""

import torch
from media_loaders import LIMITS, PillowJpegDecoder, picture_item
from tiny_answers import TinyModel, asked_pictures

from encoder_service.media.gpu import GpuPatchLoader
from triptych.config import EncoderSection
from triptych.media.layout import MediaProcessing
from triptych.models_folder import BUILT_IN_FOLDER

CPU = torch.device("cpu")
# Levels of 0 to 255 by which single pixels may differ between nvJPEG and libjpeg-turbo, and more.
LARGEST_DIFFERENCE = 4


def test_answers_survive_other_pixels() -> None:
    of, asked = MediaProcessing.from_folder(BUILT_IN_FOLDER), asked_pictures(6)
    loader = GpuPatchLoader(of, LIMITS, EncoderSection(), CPU, torch.float32, PillowJpegDecoder())
    prepared = [loader.prepare(picture_item(picture.data, of)) for picture in asked]
    patches = loader.pack(prepared).patches
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-LARGEST_DIFFERENCE, LARGEST_DIFFERENCE + 1, patches.shape, generator=generator)
    deviation = torch.tensor(of.image.std).mul(255).repeat_interleave(patches.shape[1] // 3)
    other = patches + noise / deviation
    grids, questions = [media.grid for media in prepared], [picture.question for picture in asked]
    answers = TinyModel(CPU).answers(questions, other.split([grid.num_patches for grid in grids]), grids)
    assert answers == [picture.answer for picture in asked]
