"""vidjax: video understanding in JAX.

Pure-functional Flax modules, a tf.data pipeline and pre-training objectives. `import vidjax` does not import
TensorFlow, PyTorch, av or tyro.
"""

from vidjax.convert import export_pretrained, list_pretrained, load_adapter, load_weights, save_pretrained
from vidjax.models import create_model, create_text_model, list_models
from vidjax.runs import load_pretrained

__all__ = [
    "create_model",
    "create_text_model",
    "export_pretrained",
    "list_models",
    "list_pretrained",
    "load_adapter",
    "load_pretrained",
    "load_weights",
    "save_pretrained",
]
__version__ = "0.1.0"
