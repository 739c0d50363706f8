# docker build -t toppo . && docker run --gpus all --shm-size 2g -v $PWD/runs:/toppo/runs toppo python toppo_mt50.py --seed 3
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libosmesa6 && rm -rf /var/lib/apt/lists/*
ENV MUJOCO_GL=osmesa
WORKDIR /toppo
COPY . .
RUN pip install --no-cache-dir -r requirements-dev.txt -r requirements-envpool.txt -r requirements-sweep.txt
CMD ["python", "toppo_mt50.py", "--help"]
