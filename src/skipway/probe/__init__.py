"""Measure: what the skips of a network do, on real data; every probe leaves the model as it found it."""

from skipway.probe.barrier import Barrier, barrier
from skipway.probe.batches import Batch, Batches, read_batches
from skipway.probe.capture import capture
from skipway.probe.collisions import Collisions, collisions
from skipway.probe.curvature import Curvature, curvature
from skipway.probe.curvature_map import CurvatureMap, curvature_map
from skipway.probe.directions import random_direction
from skipway.probe.gradients import GradientComparison, Gradients, compare_gradients, gradients
from skipway.probe.identity import Identity, identity
from skipway.probe.identity_construction import Construction, construction, deepened
from skipway.probe.landscape import Landscape, landscape, merge_landscapes
from skipway.probe.landscape_plot import side_by_side
from skipway.probe.lesions import Lesions, lesions
from skipway.probe.matching import Matching, match_weights
from skipway.probe.monitor import GradientHistory, GradientMonitor
from skipway.probe.paths import PathGradients, paths
from skipway.probe.planes import SymmetryPlane, symmetry_plane
from skipway.probe.quiet import quiet
from skipway.probe.responses import ResponseComparison, Responses, compare_responses, responses
from skipway.probe.result import Policy, Result, load
from skipway.probe.reuse import Reuse, reuse
from skipway.probe.roughness import contour_roughness, negative_curvature
from skipway.probe.shattering import Shattering, ShatteringComparison, compare_shattering, shattering
from skipway.probe.singularities import Singularities, singularities
from skipway.probe.singularity_history import SingularityHistory, SingularityMonitor
from skipway.probe.symmetry_breaking import SymmetryBreaking, symmetry_breaking
from skipway.probe.trajectory import Trajectory, trajectory
from skipway.probe.two_parameters import TwoParameters, two_parameters

__all__ = [
    "Barrier",
    "Batch",
    "Batches",
    "Collisions",
    "Construction",
    "Curvature",
    "CurvatureMap",
    "GradientComparison",
    "GradientHistory",
    "GradientMonitor",
    "Gradients",
    "Identity",
    "Landscape",
    "Lesions",
    "Matching",
    "PathGradients",
    "Policy",
    "ResponseComparison",
    "Responses",
    "Result",
    "Reuse",
    "Shattering",
    "ShatteringComparison",
    "Singularities",
    "SingularityHistory",
    "SingularityMonitor",
    "SymmetryBreaking",
    "SymmetryPlane",
    "Trajectory",
    "TwoParameters",
    "barrier",
    "capture",
    "collisions",
    "compare_gradients",
    "compare_responses",
    "compare_shattering",
    "construction",
    "contour_roughness",
    "curvature",
    "curvature_map",
    "deepened",
    "gradients",
    "identity",
    "landscape",
    "lesions",
    "load",
    "match_weights",
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
    "singularities",
    "symmetry_breaking",
    "symmetry_plane",
    "trajectory",
    "two_parameters",
]
