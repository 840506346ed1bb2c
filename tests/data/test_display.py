"""Colours against exact arithmetic, and size and orientation of frames against players."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import videos
from PIL import Image

from vidjax.data import decode
from vidjax.data.decode import DecodeError

WIDTHS = [(64, 48, None), (640, 480, 128), (644, 480, 128), (322, 240, 171)]

WEIGHTS = {"undef": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020nc": (0.2627, 0.0593)}
"""Weights of red and blue in luma by x264's matrix name; unspecified means BT.601."""


def flat(path, width, height, yuv, pixels="yuv420p", matrix="undef"):
    """Writes one frame of a single colour, losslessly."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0", "x264-params": f"colormatrix={matrix}"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        frame = av.VideoFrame(width, height, pixels)
        for plane, value in zip(frame.planes, yuv, strict=True):
            numbers = np.full(plane.buffer_size // (2 if "10" in pixels else 1), value, np.uint16)
            plane.update(numbers if "10" in pixels else numbers.astype(np.uint8))
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        for packet in (*stream.encode(frame), *stream.encode()):
            out.mux(packet)
    return path


def arithmetic(frame):
    """A yuv420p frame as float RGB (h w 3) by the equations of ITU-T H.273.

    Chroma is interpolated from its sampling positions: every other pixel in width, between two rows in height.
    """
    y, cb, cr = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes)
    across, down = np.arange(frame.width) / 2, np.arange(frame.height) / 2 - 0.25
    cb, cr = (interpolate(interpolate(chroma, across, 1), down, 0) - 128 for chroma in (cb, cr))
    full = frame.color_range == 2
    y, scale = (y, 1) if full else ((y - 16.0) * 255 / 219, 255 / 224)
    red_weight, blue_weight = (0.2126, 0.0722) if frame.colorspace == 1 else (0.299, 0.114)
    red, blue = y + 2 * (1 - red_weight) * scale * cr, y + 2 * (1 - blue_weight) * scale * cb
    green = (y - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return np.stack([red, green, blue], -1).clip(0, 255)


def interpolate(plane, positions, axis):
    return np.apply_along_axis(lambda line: np.interp(positions, np.arange(len(line)), line), axis, plane)


@pytest.mark.parametrize(("width", "height", "short_side"), WIDTHS)
def test_flat_colours_are_exact_to_one_level_at_any_width(width, height, short_side, tmp_path):
    for yuv in ((235, 128, 128), (16, 128, 128), (81, 90, 240), (145, 54, 34), (41, 240, 110), (120, 150, 100)):
        path = flat(tmp_path / f"{yuv}.mp4", width, height, yuv)
        with av.open(str(path)) as file:
            right = arithmetic(next(file.decode(video=0)))[0, 0]
        assert np.abs(decode.decode(path, [0], short_side) - right).max() <= 1


@pytest.mark.parametrize(("matrix", "weights"), WEIGHTS.items())
@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
def test_colours_follow_the_matrix_the_range_and_the_depth_of_the_file(matrix, weights, pixels, tmp_path):
    levels, yuv = (1023, (440, 360, 680)) if "10" in pixels else (255, (110, 90, 170))
    path = flat(tmp_path / "flat.mp4", 66, 48, yuv, pixels, matrix)
    y, cb, cr = (
        (value - middle * (levels + 1) / 256) / levels for value, middle in zip(yuv, (16, 128, 128), strict=True)
    )
    y, cb, cr = (yuv[0] / levels, cb, cr) if pixels == "yuvj420p" else (y * 255 / 219, cb * 255 / 224, cr * 255 / 224)
    red, blue = y + 2 * (1 - weights[0]) * cr, y + 2 * (1 - weights[1]) * cb
    right = np.array([red, (y - weights[0] * red - weights[1] * blue) / (1 - sum(weights)), blue]) * 255
    for short_side in (None, 24, 23):
        assert np.abs(decode.decode(path, [0], short_side)[0] - right).max() <= 1


@pytest.mark.skipif(not videos.REAL_CLIPS, reason="the real clips are not on this machine")
@pytest.mark.parametrize("path", videos.REAL_CLIPS, ids=lambda path: path.name)
def test_real_frames_are_exact_to_a_mean_of_seven_tenths_of_a_level(path):
    with av.open(str(path)) as file:
        right = arithmetic(next(file.decode(video=0)))
    for short_side in (None, 171, 128):
        frame = decode.decode(path, [0], short_side, square_pixels=False)[0]
        if path.suffix == ".mov":  # turned by 180 degrees
            frame = frame[::-1, ::-1]
        height, width = frame.shape[:2]
        channels = [
            Image.fromarray(right[..., i].astype(np.float32)).resize((width, height), Image.BILINEAR) for i in range(3)
        ]
        error = frame - np.stack([np.asarray(channel) for channel in channels], -1)
        assert abs(error.mean()) < 0.1 and np.abs(error).mean() < 0.7


CORNERS = {  # a, b, c, d of x' = a x + c y, y' = b x + d y, and the corner to which it maps a bright top left corner
    (1, 0, 0, 1): "top left", (0, 1, -1, 0): "top right", (-1, 0, 0, -1): "bottom right", (0, -1, 1, 0): "bottom left",
    (-1, 0, 0, 1): "top right", (1, 0, 0, -1): "bottom left", (0, 1, 1, 0): "top left", (0, -1, -1, 0): "bottom right",
}  # fmt: skip


@pytest.mark.parametrize("matrix", CORNERS)
def test_a_display_matrix_turns_and_mirrors(matrix, tmp_path):
    frames = np.zeros((3, 48, 80, 3), np.uint8)
    frames[:, :24, :40] = 240
    path = videos.write_video(tmp_path / "phone.mp4", frames)
    data, (a, b, c, d) = bytearray(path.read_bytes()), (65536 * number for number in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = decode.decode(path, [1])[0].mean(-1)
    assert frame.shape == ((80, 48) if matrix[0] == 0 else (48, 80))
    info = decode.probe(path)
    assert (info.height, info.width) == frame.shape
    rows, columns = np.array_split(frame, 2), ("left", "right")
    bright = {
        f"{side} {column}": part.mean()
        for side, row in zip(("top", "bottom"), rows, strict=True)
        for column, part in zip(columns, np.array_split(row, 2, axis=1), strict=True)
    }
    assert max(bright, key=bright.get) == CORNERS[matrix]


@pytest.mark.parametrize(
    ("aspect", "width"), [((16, 15), 85), ((4, 3), 107), ((8, 9), 71), ((1, 1), 80), ((641, 640), 80)]
)
def test_non_square_pixels_are_stretched_in_width(aspect, width, tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = Fraction(*aspect)
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(videos.numbered(3)[i], "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert decode.decode(path, [0]).shape == (1, 48, width, 3)
    assert (decode.probe(path).width, decode.probe(path, square_pixels=False).width) == (width, 80)
    assert decode.decode(path, [0], 24).shape == (1, 24, round(width / 2), 3)
    assert decode.decode(path, [0], square_pixels=False).shape == (1, 48, 80, 3)
    assert videos.streamed(path, [1])[0].shape == (48, width, 3)


def write_streams(path, video_first, cover):
    """Writes a video of five frames and a still image, which is marked as a cover or not."""
    with av.open(str(path), "w") as out:
        video, still = None, None
        for kind in ("video", "still") if video_first else ("still", "video"):
            stream = out.add_stream("libx264" if kind == "video" else "mjpeg", rate=25)
            stream.width, stream.height = 80, 48
            stream.pix_fmt = "yuv420p" if kind == "video" else "yuvj420p"
            video, still = (stream, still) if kind == "video" else (video, stream)
        video.disposition = av.stream.Disposition.default
        still.disposition = av.stream.Disposition.attached_pic if cover else av.stream.Disposition(0)
        out.start_encoding()
        image = av.VideoFrame.from_ndarray(videos.numbered(1, first=777)[0], "rgb24").reformat(format="yuvj420p")
        for packet in still.encode(image):
            out.mux(packet)
        for i, number in enumerate(videos.numbered(5)):
            frame = av.VideoFrame.from_ndarray(number, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode())
    return path


@pytest.mark.parametrize("video_first", [True, False])
@pytest.mark.parametrize(("suffix", "cover"), [("mkv", False), ("mp4", False), ("mp4", True)])
def test_the_video_is_chosen_over_a_still_image(suffix, cover, video_first, tmp_path):
    path = write_streams(tmp_path / f"video.{suffix}", video_first, cover)
    assert decode.probe(path).num_frames == 5
    assert videos.numbers(decode.decode(path, range(5))) == list(range(5))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])  # Matroska's muxer drops the cover flag
def test_audio_with_a_cover_image_is_not_a_video(suffix, tmp_path):
    path = tmp_path / f"song.{suffix}"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=8000)
        cover = out.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 80, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.start_encoding()
        image = av.VideoFrame.from_ndarray(videos.numbered(1)[0], "rgb24").reformat(format="yuvj420p")
        for packet in cover.encode(image):
            out.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in (*sound.encode(frame), *sound.encode()):
            out.mux(packet)
    with pytest.raises(DecodeError, match=r"song\.\w+: it contains no video, only a cover image$"):
        decode.probe(path)


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG"), ("bt709", "")])
def test_high_dynamic_range_is_reported(transfer, name, tmp_path):
    options = {"x264-params": f"transfer={transfer}"}
    assert decode.probe(videos.write_video(tmp_path / "a.mp4", videos.numbered(3), options=options)).hdr == name


def test_side_data_unknown_to_pyav_do_no_harm(tmp_path):
    """PyAV 18.1 does not know FFmpeg 8.1's side data type for TIFF's EXIF and then raises for all side data."""
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("tiff", rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "rgb24"
        for i, number in enumerate(videos.numbered(5)):
            frame = av.VideoFrame.from_ndarray(number, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert videos.numbers(decode.decode(path, range(5))) == list(range(5))
