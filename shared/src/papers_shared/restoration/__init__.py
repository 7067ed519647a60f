"""Networks that restore pictures: super-resolution, denoising, JPEG artifacts, rain, blur."""
