"""A small data set of road scenes that the project draws itself.

A scene is a flat world in metres (roads, parking lots, buildings, trees, vehicles) seen by a
pinhole camera that looks down on it, either steeply as from a drone or obliquely as from a mast.
Solids are convex prisms drawn from far to near; the shadows they cast lie on the ground.
Everything follows from one seed. Objects are few, small and gathered along roads, and containers,
sheds, roof units and patches of fresh asphalt look like them at a glance.
"""

from sparse_dset.data.synthetic.dataset import write_dataset
from sparse_dset.data.synthetic.scene import Scene, render_scene
from sparse_dset.data.synthetic.solids import CLASSES

__all__ = ["CLASSES", "Scene", "render_scene", "write_dataset"]
