"""Measure: what the skips of a network do, on real data; every probe leaves the model as it found it."""

from skipway.probe.batches import Batch, Batches, read_batches
from skipway.probe.capture import capture
from skipway.probe.curvature import Curvature, curvature
from skipway.probe.curvature_map import CurvatureMap, curvature_map
from skipway.probe.directions import random_direction
from skipway.probe.gradients import GradientComparison, Gradients, compare_gradients, gradients
from skipway.probe.landscape import Landscape, landscape, merge_landscapes
from skipway.probe.landscape_plot import side_by_side
from skipway.probe.lesions import Lesions, lesions
from skipway.probe.monitor import GradientHistory, GradientMonitor
from skipway.probe.paths import PathGradients, paths
from skipway.probe.quiet import quiet
from skipway.probe.responses import ResponseComparison, Responses, compare_responses, responses
from skipway.probe.result import Policy, Result, load
from skipway.probe.reuse import Reuse, reuse
from skipway.probe.roughness import contour_roughness, negative_curvature
from skipway.probe.shattering import Shattering, ShatteringComparison, compare_shattering, shattering
from skipway.probe.trajectory import Trajectory, trajectory

__all__ = [
    "Batch",
    "Batches",
    "Curvature",
    "CurvatureMap",
    "GradientComparison",
    "GradientHistory",
    "GradientMonitor",
    "Gradients",
    "Landscape",
    "Lesions",
    "PathGradients",
    "Policy",
    "ResponseComparison",
    "Responses",
    "Result",
    "Reuse",
    "Shattering",
    "ShatteringComparison",
    "Trajectory",
    "capture",
    "compare_gradients",
    "compare_responses",
    "compare_shattering",
    "contour_roughness",
    "curvature",
    "curvature_map",
    "gradients",
    "landscape",
    "lesions",
    "load",
    "merge_landscapes",
    "negative_curvature",
    "paths",
    "quiet",
    "random_direction",
    "read_batches",
    "responses",
    "reuse",
    "shattering",
    "side_by_side",
    "trajectory",
]
