"""A ROS 2 node: images in, answers out as JSON in std_msgs/String, one for each image.

Tried with a stand-in of rclpy only, not in ROS 2 itself. With ROS 2 sourced, in an
environment made with `python3 -m venv --system-site-packages`:

    python samples/ros2_node.py --profile my-camera.yaml --images /camera/image_raw
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np

import dvt_edge

try:
    import rclpy
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import String
except ImportError as missing:
    sys.exit(f"error: ROS 2 is needed ({missing}); source /opt/ros/<release>/setup.bash first")

# Encoding of a message -> color_order, bytes per pixel
LAYOUTS = {"bgr8": ("bgr", 3), "rgb8": ("rgb", 3), "mono8": ("gray", 1), "yuv422_yuy2": ("yuyv", 2)}


class Classifier(Node):  # type: ignore[misc]  # rclpy has no types here
    """Publishes what a Runtime answers to each image."""

    def __init__(self, runtime: dvt_edge.Runtime, images: str, answers: str) -> None:
        super().__init__("dvt_edge")
        self.runtime = runtime
        self.publisher = self.create_publisher(String, answers, 10)
        self.create_subscription(Image, images, self.take, qos_profile_sensor_data)

    def take(self, message: Any) -> None:
        if message.encoding not in LAYOUTS:
            self.get_logger().error(f"{message.encoding} is none of {list(LAYOUTS)}", once=True)
            return
        order, size = LAYOUTS[message.encoding]
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        pixels = rows[:, : message.width * size]  # rows may be padded
        if size > 1:
            pixels = pixels.reshape(message.height, message.width, size)
        try:
            answer = self.runtime.classify(pixels, color_order=order)
        except dvt_edge.FrameError as error:
            self.get_logger().error(str(error))
            return
        stamp = message.header.stamp
        values = {"label": answer.label, "confidence": answer.confidence, "exit": answer.exit_stage}
        values["stamp"] = stamp.sec + 1e-9 * stamp.nanosec
        self.publisher.publish(String(data=json.dumps(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify the images of a ROS 2 topic.")
    parser.add_argument("--profile", required=True, help="what to run, and its budget (YAML)")
    parser.add_argument("--images", default="image_raw", help="topic of sensor_msgs/Image")
    parser.add_argument("--answers", default="answers", help="topic of std_msgs/String")
    args, for_ros = parser.parse_known_args()
    with dvt_edge.Runtime(args.profile) as runtime:
        rclpy.init(args=for_ros)
        rclpy.spin(Classifier(runtime, args.images, args.answers))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except dvt_edge.DvtEdgeError as error:
        sys.exit(f"error: {error}")
