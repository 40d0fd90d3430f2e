"""Names: taken apart, refused with the spellings that would do, and listed."""

from __future__ import annotations

import pytest
import torch

from convlens.errors import ModelError
from convlens.models import DEFAULT, choose_device, listing, load
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
        ("torchvision:resnet18:untrained?mean=.5,.5", "three numbers"),
        ("torchvision:resnet18:untrained?std=0", "three numbers"),
        ("torchvision:resnet18:untrained?mean=nan", "three numbers"),
        ("torchvision:resnet18:untrained?interpolation=box", "nearest, bilinear, bicubic, lanczos"),
        ("torchvision:resnet18:untrained?resize=100", "smaller than size=224"),
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
