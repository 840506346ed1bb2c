"""What models around another model have in common: the clips that they are meant for."""


class ClipsOfVideoTower:
    """The clips of a model are those of its tower `video`; it returns embeddings or texts, not classes."""

    @property
    def num_frames(self) -> int:
        """Frames of the clips that the tower is meant for."""
        return self.video.num_frames

    @property
    def image_size(self) -> int:
        """Height and width of these clips."""
        return self.video.image_size

    @property
    def channels(self) -> int:
        """Channels of these clips."""
        return self.video.channels

    @property
    def num_classes(self) -> None:
        """None: the model is no classifier."""
        return None


class ClipsOfTower:
    """The clips of a model are those of its `tower`, to which it adds a head."""

    @property
    def num_frames(self) -> int:
        """Frames of the clips that the tower is meant for."""
        return self.tower.num_frames

    @property
    def image_size(self) -> int:
        """Height and width of these clips."""
        return self.tower.image_size

    @property
    def channels(self) -> int:
        """Channels of these clips."""
        return self.tower.channels
