"""What GStreamer is told to build for a source."""

from __future__ import annotations

from dvt_edge.camera.address import Address

SINK = (
    "videoconvert ! video/x-raw,format=(string){BGR,GRAY8} ! "
    "appsink name=dvt-edge max-buffers=1 drop=true sync=false"
)


def description(address: Address) -> str:
    """The pipeline of a source, without :data:`SINK`."""
    if address.kind == "gst":
        return address.target.rstrip(" !\n")
    size = "" if address.size is None else ",width={},height={}".format(*address.size)
    rate = "" if address.fps is None else f",framerate={round(address.fps)}/1"
    return (
        f"nvarguscamerasrc sensor-id={address.target} ! "
        f"video/x-raw(memory:NVMM),format=NV12{size}{rate} ! nvvidconv ! video/x-raw,format=BGRx"
    )
