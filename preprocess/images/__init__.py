"""Encoded images: headers, recoding, transcoding, undistortion."""
