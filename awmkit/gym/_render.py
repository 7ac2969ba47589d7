"""A picture of rods and joints, drawn with plain numpy.

Apart from the environments because what a pendulum looks like is none of their concern, and no plotting library is needed.
"""

import numpy as np

BACKGROUND, ROD, JOINT, HINGE = (np.array(rgb, float) for rgb in ((250, 250, 247), (61, 90, 128), (238, 108, 77), (41, 50, 65)))


def draw(joints: np.ndarray, *, size: int = 256) -> np.ndarray:
    """Rods between joints, anti-aliased, the origin in the middle.

    The picture is wide enough for the stretched chain about the origin, and widens where the chain has gone farther.

    **Arguments:** `joints`: positions in metres, x to the right and y upwards, the hinge first, shape (n+1, 2). `size`: pixels
    of either side.

    **Returns:** uint8, shape (size, size, 3).
    """
    reach = np.linalg.norm(np.diff(joints, axis=0), axis=1).sum()
    half = max(1.2 * reach, 1.1 * np.abs(joints).max())  # metres from the middle to an edge
    pixel = 2 * half / size
    middles = (np.arange(size) + 0.5) * pixel - half
    points = np.stack(np.meshgrid(middles, -middles), axis=-1)
    image = np.broadcast_to(BACKGROUND, (size, size, 3))

    def paint(start, end, radius, colour):
        share = np.clip(0.5 + (radius - _distance(points, start, end)) / pixel, 0, 1)[..., None]
        return (1 - share) * image + share * colour

    for start, end in zip(joints[:-1], joints[1:], strict=True):
        image = paint(start, end, 0.025 * half, ROD)
    for joint in joints[1:]:
        image = paint(joint, joint, 0.06 * half, JOINT)
    image = paint(joints[0], joints[0], 0.04 * half, HINGE)
    return np.rint(image).astype(np.uint8)


def _distance(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """From each point, shape (..., 2), to the segment between `start` and `end`."""
    along = end - start
    share = np.clip((points - start) @ along / max(along @ along, 1e-12), 0, 1)
    return np.linalg.norm(points - start - share[..., None] * along, axis=-1)
