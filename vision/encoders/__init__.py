"""Encoders of images: those of timm, the zoo of small towers, and pixel statistics as their control."""
