"""Online half: store -> resident cache -> batches on the device."""

from pipeline.siblings import join_model

join_model()
