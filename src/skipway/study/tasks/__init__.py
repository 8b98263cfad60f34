"""What networks are trained for: classes of images, masks, texts, translations."""
