"""Online half: store -> resident cache -> batches on the device."""

from pipeline.app.siblings import join_model

join_model()
