from tests.models.conftest import cache, run_python, tiny_folder

__all__ = ["cache", "run_python", "tiny_folder"]
