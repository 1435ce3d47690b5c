"""The bundled model that reads pictures: a small LLaVA trained on drawn shapes and digits."""
