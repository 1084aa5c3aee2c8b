"""Two logical CPU devices, so that MirroredStrategy has two replicas; must be set before TensorFlow starts."""

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.list_logical_devices()  # starts it: so that no test can change its devices or threads for those after it
__all__ = ['program']
