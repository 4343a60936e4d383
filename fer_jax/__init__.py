"""fer_jax: facial emotion recognition that is tested on content it has never seen."""

__version__ = "0.1.0"
