"""Lists the files of weights in a folder of Hugging Face: one, or several with an index."""

import pathlib

from keras_rgemma.files import read_json


class Shards:
    """Holds the names of the files of weights, and checks which file holds which tensor.

    Args:
        folder: `pathlib.Path`.
        single: str, the name of the file that holds all weights, which is preferred.
        index: str, the name of the JSON file that lists several.

    Attributes:
        files: list of str, names in the folder.
        owners: dict of the name of a tensor to the name of its file.

    Raises:
        ValueError: there is neither file, or the index is broken.
    """

    files: list[str]
    owners: dict[str, str]

    def __init__(self, folder: pathlib.Path, single: str, index: str) -> None:
        self.owners = {}
        self._index, self._weight_map = index, None
        if (folder / single).exists():
            self.files = [single]
            return
        if not (folder / index).exists():
            raise ValueError(
                f"{str(folder)!r} holds neither {single} nor {index}. Fetch the weights again."
            )
        self._weight_map = read_json(folder / index).get("weight_map")
        if not isinstance(self._weight_map, dict) or not self._weight_map:
            raise ValueError(f"{index} has no `weight_map` of tensors to files. Fetch it again.")
        for file in self._weight_map.values():
            is_name = isinstance(file, str) and pathlib.PurePath(file).name == file
            if not is_name or file in ("", "..") or "\\" in file:
                raise ValueError(
                    f"{index} names the file {file!r}, which is not a plain name in its own "
                    "folder. The checkpoint is broken or hostile; nothing was read from there."
                )
        self.files = sorted(set(self._weight_map.values()))

    def add(self, name: str, file: str) -> None:
        """Notes that a file holds a tensor.

        Raises:
            ValueError: another file holds the tensor, too, or the index lists it in another.
        """
        if name in self.owners:
            raise ValueError(
                f"The tensor {name!r} is in {self.owners[name]!r} and in {file!r}. Remove the file "
                "that is a left-over of another checkpoint."
            )
        listed = file if self._weight_map is None else self._weight_map.get(name)
        if listed != file:
            raise ValueError(
                f"The tensor {name!r} is in {file!r}, but {self._index} lists it in {listed!r}. "
                "Fetch the index and its files again, of one revision."
            )
        self.owners[name] = file

    def check_complete(self) -> None:
        """Raises ValueError if the index lists tensors that no file holds."""
        absent = sorted(set(self._weight_map or ()) - set(self.owners))
        if absent:
            raise ValueError(
                f"{self._index} lists tensors that its files do not hold: {absent}. Fetch the "
                "index and its files again, of one revision."
            )
