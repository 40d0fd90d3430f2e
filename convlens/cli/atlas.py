"""``convlens atlas``: the microscope, a site that shows what each channel of a network looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.atlas.build import ChannelActors, build_atlas, default_layers
from convlens.atlas.channel import ChannelOptions
from convlens.atlas.maximisation import MaximisationOptions
from convlens.atlas.site_dir import PAGE, require_atlas_dir
from convlens.cli.console import print_message, print_result, print_skipped, progress_bar, spinner
from convlens.cli.interrupts import resumable
from convlens.cli.options import (
    DeviceOption,
    LayersOption,
    OverwriteOption,
    PrecisionOption,
    RayOption,
    ResumedFolder,
    SeedOption,
    parse_channels,
    parse_names,
)
from convlens.features.image_list import find_images
from convlens.inspection.patches import Backprop
from convlens.models import load
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Step

_TITLES = {"images": "running the images", "channels": "drawing channels", "pages": "writing pages"}
_DONE = {"images": "images have run", "channels": "channels are drawn", "pages": "pages are written"}


def atlas(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name, such as packaged:efficientnet_lite0.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders of images, or one text file with one path a line.")
    ],
    output: ResumedFolder,
    layers: LayersOption = [],  # noqa: B006 - typer's way; never changed
    channels: Annotated[
        list[str],
        typer.Option(
            help="Channels, such as 0,3,8-15, for a quick look; each layer shows those that it has. Default: all; may "
            "be repeated."
        ),
    ] = [],  # noqa: B006
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Patches per channel, at most one from an image.")] = 6,
    backprop: Annotated[
        Backprop, typer.Option(help="Gradient of the patch's own unit to draw under each patch, by this ReLU rule.")
    ] = "guided",
    labels: Annotated[
        str,
        typer.Option(help="True classes: `folder` (an image's folder is its class) or a CSV table (file, label)."),
    ] = "",
    pictures: Annotated[int, typer.Option(help="Maximising pictures per channel.")] = 2,
    steps: Annotated[int, typer.Option(help="Steps of each; more draw finer and take longer.")] = 40,
    side: Annotated[int, typer.Option(help="Their height and width in pixels.")] = 112,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    ray: RayOption = "",
    overwrite: OverwriteOption = False,
) -> None:
    """Show each channel of a network: what maximises it, the patches that excite it, and the classes it speaks for."""
    keep_freed_memory()
    require_atlas_dir(output, overwrite=overwrite)
    maximisation = MaximisationOptions(pictures=pictures, steps=steps, side=side)
    options = ChannelOptions(k=k, backprop=backprop, maximisation=maximisation, seed=seed)
    selected = parse_channels(channels) or None
    files = find_images(images)
    with spinner(f"loading {model}"):
        classifier = load(model, device=device, precision=precision)
        chosen = parse_names(layers) or default_layers(classifier)
    print_message(f"layers: {', '.join(chosen)}")
    last = Step("images", 0, len(files))

    def kept() -> str:
        return f"{last.done} of {last.total} {_DONE[last.stage]} and kept in {output}"

    with resumable(kept), progress_bar(_TITLES["images"], len(files)) as bar:

        def show(step: Step) -> None:
            nonlocal last
            last = step
            title = _TITLES[step.stage]
            bar.update(bar.task_ids[0], description=title, completed=step.done, total=step.total)

        made = build_atlas(
            classifier,
            files,
            output,
            layers=chosen,
            channels=selected,
            options=options,
            labels=None if not labels else "folder" if labels == "folder" else Path(labels),
            overwrite=overwrite,
            cluster=ChannelActors(ray, model, device, precision) if ray else None,
            on_step=show,
        )
    print_skipped((id, reason) for id, reason in made.facts["unreadable"])
    print_result(
        f"{len(made.records)} channels of {len(chosen)} layers from {made.facts['images']} images\n"
        f"site: {output / PAGE}"
    )
