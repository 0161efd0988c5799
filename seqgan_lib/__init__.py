"""SeqGAN Step by Step: the library under the book."""

from .language_model import LanguageModel, random_oracle
from .sampling import new_generator, resolve_device

__version__ = "0.1.0"
__all__ = ["LanguageModel", "new_generator", "random_oracle", "resolve_device"]
