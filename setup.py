"""Everything is in pyproject.toml; this only makes `pip install -e .` install the data-files too, which setuptools otherwise leaves out."""

from setuptools import Distribution, setup


class WithDataFiles(Distribution):
    def has_data(self) -> bool:  # asked for by setuptools' editable install, which otherwise takes the answer for no
        return bool(self.data_files)


if __name__ == "__main__":
    setup(distclass=WithDataFiles)
