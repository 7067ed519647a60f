"""What the diffusion papers share; built on diffusers, which only the scheduler, the autoencoders
and the pipeline import."""
