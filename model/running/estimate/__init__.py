"""What a training run will need, on paper: parameters, FLOPs, memory per GPU or process, seconds per step. No torch, no
GPU. :mod:`.memory` and :mod:`.speed` calculate, :mod:`.engines` compares, :mod:`.table` prints."""
