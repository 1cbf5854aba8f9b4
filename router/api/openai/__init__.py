"""The OpenAI HTTP API: conversion alone; the answers come from the same service as gRPC's."""
