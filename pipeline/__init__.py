"""Data loading: store -> device-resident cache -> augmented batches on the device."""

from pipeline.app.siblings import join_model

join_model()
