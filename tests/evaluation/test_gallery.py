"""What is written to the run folder is read back as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.gallery import read_final_samples, read_step_samples, write_final_samples, write_step_samples


def pictures(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_final_samples_come_back(tmp_path: Path) -> None:
    assert read_final_samples(tmp_path) is None
    captions = ["a “quoted” <b>cat</b>", "日本の旗"]
    real, generated = pictures(2), {1.0: pictures(2, 1), 7.5: pictures(2, 2)}
    prompts = dict(zip(["a red heart", "<i>"], pictures(2, 3), strict=True))
    listing = write_final_samples(tmp_path, captions, real, generated, 30, 9, prompts, prompts_scale=2.5)
    gallery = read_final_samples(tmp_path)
    assert gallery is not None
    assert (gallery.step, gallery.sampler_steps, gallery.guidance_scales) == (30, 9, [1.0, 7.5])
    assert [row.caption for row in gallery.rows] == captions
    for i, row in enumerate(gallery.rows):
        assert torch.equal(pixels(row.real), real[i])
        assert {s: pixels(p).tolist() for s, p in row.generated.items()} == {
            s: x[i].tolist() for s, x in generated.items()
        }
    assert {prompt: pixels(path).tolist() for prompt, path in gallery.prompts.items()} == {
        prompt: image.tolist() for prompt, image in prompts.items()
    }
    assert gallery.prompts_scale == 2.5
    for row in json.loads(listing.read_text())["rows"]:
        assert (listing.parent / row["real"]).exists()


def test_final_samples_of_before_there_were_prompts(tmp_path: Path) -> None:
    listing = write_final_samples(tmp_path, ["a"], pictures(1), {1.0: pictures(1)}, 30, 9, {}, 1.0)
    content = json.loads(listing.read_text())
    listing.write_text(json.dumps({key: content[key] for key in content if not key.startswith("prompts")}))
    gallery = read_final_samples(tmp_path)
    assert gallery is not None and gallery.prompts == {} and len(gallery.rows) == 1


def test_step_samples_come_back_in_order_with_their_captions(tmp_path: Path) -> None:
    for step in (200, 0, 1000):
        write_step_samples(tmp_path, step, pictures(4, step), ["café", "b"])
    (tmp_path / "samples" / "step-half.png").write_bytes(b"no picture")
    found = read_step_samples(tmp_path)
    assert [samples.step for samples in found] == [0, 200, 1000]
    assert all(samples.captions == ["café", "b"] for samples in found)
    assert (found[0].width, found[0].height) == (6 * 2 + 4, 6 * 2 + 4)


def test_numbers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 captions but 3 images \(guidance 2\)"):
        write_final_samples(tmp_path, ["a", "b"], pictures(2), {2.0: pictures(3)}, 1, 1, {}, 1.0)
    with pytest.raises(ValueError, match="3 images do not fill rows of 2"):
        write_step_samples(tmp_path, 1, pictures(3), ["a", "b"])
    assert not (tmp_path / "samples").exists()
