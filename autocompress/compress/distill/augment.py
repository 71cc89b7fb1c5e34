"""Strong augmentation of whole batches, on the device where they are: what a teacher says of new inputs is what the student lacks.

- mixup (Zhang et al. 2018): x = share * x_a + (1 - share) * x_b, share ~ Beta(1, 1), one a batch.
- cutmix (Yun et al. 2019): a box of x_b in x_a, of 1 - u of the area, u ~ Beta(1, 1), around a random centre and clipped at the border;
  share is what remains of x_a.
- randaugment (Cubuk et al. 2020): two operations a sample at one strength, out of those of the paper that mean something on tensors of any
  range, and cutout (DeVries and Taylor 2017). Mirroring is not among them, as in the paper: it makes other digits and letters of them.

Teacher and student see the result. Everything is drawn from a ``torch.Generator`` of the device.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.compress.distill.loss import Mixed
from autocompress.errors import InfeasibleRecipe

Augmentation = Literal["none", "mixup", "cutmix", "randaugment"]
OPERATIONS = ("shift_x", "shift_y", "rotate", "shear_x", "shear_y", "brightness", "contrast", "cutout")
AT_ONCE = 2
# The strength 9 of 30, with which the paper trained most of its models.
SHIFT, ANGLE, SHEAR, BRIGHTNESS, CONTRAST, HOLE = 0.1, math.radians(9.0), 0.1, 0.3, 0.3, 0.3


def augmented(kind: Augmentation, inputs: Tensor, targets: Tensor, random: torch.Generator) -> tuple[Tensor, Mixed | None]:
    """inputs (N, ...) changed by ``kind``, and what they were mixed with; ``random`` is of their device.

    Raises InfeasibleRecipe where inputs are no floats, or no images for what moves pixels, or the targets would have to move too.
    """
    if kind == "none":
        return inputs, None
    shapes = f"inputs are {inputs.dtype} {tuple(inputs.shape)}, targets {tuple(targets.shape)}. Set augmentation to"
    if not inputs.is_floating_point():
        raise InfeasibleRecipe(f"distillation.augmentation: {kind} computes with floats; {shapes} none.")
    if kind == "mixup":
        return mixup(inputs, targets, random)
    if inputs.dim() != 4:
        raise InfeasibleRecipe(f"distillation.augmentation: {kind} is for images (N, C, H, W); {shapes} mixup or none.")
    if targets.dim() > 2:
        raise InfeasibleRecipe(
            f"distillation.augmentation: {kind} moves pixels, and targets with places would stay; {shapes} mixup or none."
        )
    if kind == "cutmix":
        return cutmix(inputs, targets, random)
    return randaugment(inputs, random), None


def mixup(inputs: Tensor, targets: Tensor, random: torch.Generator) -> tuple[Tensor, Mixed]:
    """inputs (N, ...) -> (N, ...)."""
    order, share = _partners(inputs, random), float(_uniform(1, random))
    return torch.lerp(inputs[order], inputs, share), Mixed(targets[order], share)


def cutmix(inputs: Tensor, targets: Tensor, random: torch.Generator) -> tuple[Tensor, Mixed]:
    """inputs (N, C, H, W) -> (N, C, H, W)."""
    order = _partners(inputs, random)
    cut, row, column = _uniform(3, random).tolist()
    height, width = inputs.shape[2:]
    rows, columns = _span(row, math.sqrt(cut), height), _span(column, math.sqrt(cut), width)
    mixed = inputs.clone()
    mixed[:, :, rows, columns] = inputs[:, :, rows, columns][order]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, Mixed(targets[order], 1 - area / (height * width))


def randaugment(inputs: Tensor, random: torch.Generator) -> Tensor:
    """inputs (N, C, H, W) -> (N, C, H, W); of each sample AT_ONCE of the OPERATIONS, in either direction."""
    count, device = len(inputs), inputs.device
    drawn = torch.rand(count, len(OPERATIONS), generator=random, device=device).argsort(1) < AT_ONCE
    sign = 2.0 * torch.randint(0, 2, (count, len(OPERATIONS)), generator=random, device=device) - 1
    amount = dict(zip(OPERATIONS, (drawn * sign).to(inputs.dtype).unbind(1), strict=True))  # -1, 0 or 1 a sample
    return _with_hole(_recoloured(_moved(inputs, amount), amount), amount["cutout"] != 0, random)


def _moved(x: Tensor, amount: dict[str, Tensor]) -> Tensor:
    """Shifted, rotated and sheared at once; beyond the border lies what lies on it."""
    angle = ANGLE * amount["rotate"]
    height, width = x.shape[2:]
    x_row = [angle.cos(), SHEAR * amount["shear_x"] - angle.sin() * height / width, 2 * SHIFT * amount["shift_x"]]
    y_row = [SHEAR * amount["shear_y"] + angle.sin() * width / height, angle.cos(), 2 * SHIFT * amount["shift_y"]]
    grid = F.affine_grid(torch.stack(x_row + y_row, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _recoloured(x: Tensor, amount: dict[str, Tensor]) -> Tensor:
    """Brighter or darker by a share of the sample's deviation, its contrast stretched or squeezed around its mean."""
    mean, deviation = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True, correction=0)
    stretched = mean + (x - mean) * (1 + CONTRAST * amount["contrast"]).view(-1, 1, 1, 1)
    return stretched + deviation * (BRIGHTNESS * amount["brightness"]).view(-1, 1, 1, 1)


def _with_hole(x: Tensor, chosen: Tensor, random: torch.Generator) -> Tensor:
    """A square of the chosen samples, somewhere, becomes their mean. chosen (N,) bool."""
    centre = torch.rand(len(x), 2, generator=random, device=x.device, dtype=torch.float32)
    inside = []
    for axis, size in enumerate(x.shape[2:]):
        place = (torch.arange(size, device=x.device) + 0.5) / size
        inside.append((place - centre[:, axis, None]).abs() < HOLE / 2)  # (N, size)
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :] & chosen.view(-1, 1, 1, 1)
    return torch.where(hole, x.mean((2, 3), keepdim=True), x)


def _partners(inputs: Tensor, random: torch.Generator) -> Tensor:
    return torch.randperm(len(inputs), generator=random, device=inputs.device)


def _uniform(count: int, random: torch.Generator) -> Tensor:
    """Beta(1, 1) is uniform on 0..1."""
    return torch.rand(count, generator=random, device=random.device, dtype=torch.float64)


def _span(centre: float, share: float, size: int) -> slice:
    """Pixels of a side of ``share`` of ``size`` around ``centre`` in 0..1, clipped."""
    middle, half = int(centre * size), round(share * size) / 2
    return slice(max(0, math.ceil(middle - half)), min(size, math.ceil(middle + half)))
