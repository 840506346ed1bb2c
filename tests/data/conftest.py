import pytest
import videos


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Ten seconds of ten numbered frames each."""
    return videos.write_video(tmp_path_factory.mktemp("video") / "a.mp4", videos.numbered(100), rate=10)
