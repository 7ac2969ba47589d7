"""The twelve optimal control problems of the paper's experiments: equations and numbers, nothing else.

Apart from their discretisation, `Discretised`, which is the same for all. Equations: Lenhart & Workman, *Optimal Control
Applied to Biological Models* (2007); collection: Howe et al., *Myriad* (2022); numbers: as the paper's experiments have them.
"""

import math

import jax.numpy as jnp

from ._control import AbstractControlProblem, Bounds, Parameter

UNBOUNDED = (-math.inf, math.inf)


class CancerTreatment(AbstractControlProblem):
    """A tumour of density x, grown by Gompertz's law, and a drug of strength u that kills it. Chapter 10."""

    r: Parameter = 0.3
    a: Parameter = 3.0
    delta: Parameter = 0.45
    x0: tuple[float, ...] = (0.975,)
    T: float = 20.0
    x_bounds: Bounds = ((1e-3, 1.0),)
    u_bounds: Bounds = ((0.0, 2.0),)

    def field(self, x, u, t):
        return self.r * x * jnp.log(1 / x) - self.delta * u * x

    def cost(self, x, u, t):
        return self.a * x[0] ** 2 + u[0] ** 2


class BearPopulations(AbstractControlProblem):
    """Bears in a park (P), in the forest around it (F), and the ones that leave (O); u harvests the first two. Chapter 15."""

    r: Parameter = 0.1
    K: Parameter = 0.75
    m_p: Parameter = 0.5
    m_f: Parameter = 0.5
    c_p: Parameter = 10_000.0
    c_f: Parameter = 10.0
    x0: tuple[float, ...] = (0.4, 0.2, 0.0)
    T: float = 25.0
    x_bounds: Bounds = ((0.0, 2.0),) * 3
    u_bounds: Bounds = ((0.0, 0.2),) * 2

    def field(self, x, u, t):
        r, K, m_p, m_f = self.r, self.K, self.m_p, self.m_f
        (P, F, _), (u_p, u_f) = x, u
        dP = r * P - r / K * P**2 + m_f * r / K * (1 - P / K) * F**2 - u_p * P
        dF = r * F - r / K * F**2 + m_p * r / K * (1 - F / K) * P**2 - u_f * F
        dO = r / K * ((1 - m_p) * P**2 + (1 - m_f) * F**2) + r / K**2 * (m_f * P * F**2 + m_p * P**2 * F)
        return jnp.stack([dP, dF, dO])

    def cost(self, x, u, t):
        return x[2] + self.c_p * u[0] ** 2 + self.c_f * u[1] ** 2


class Bioreactor(AbstractControlProblem):
    """Bacteria x that clean a contaminant, fed by u. Chapter 19. No control at all is optimal to 1e-6 as configured."""

    K: Parameter = 2.0
    G: Parameter = 1.0
    D: Parameter = 1.0
    x0: tuple[float, ...] = (0.5,)
    T: float = 2.0
    x_bounds: Bounds = ((0.0, 1.0),)
    u_bounds: Bounds = ((0.0, 1.0),)

    def field(self, x, u, t):
        return self.G * u * x - self.D * x**2

    def cost(self, x, u, t):
        return u[0] - self.K * x[0]


class HIVTreatment(AbstractControlProblem):
    """Healthy cells, infected cells and free virus per volume; u = 0 is full chemotherapy, u = 1 none. Chapter 14.

    The virus decays at `m_3`: explicit Euler is unstable for T/N above 2/4.4, which N = 20 is.
    """

    s: Parameter = 10.0
    m_1: Parameter = 0.02
    m_2: Parameter = 0.5
    m_3: Parameter = 4.4
    r: Parameter = 0.03
    T_max: Parameter = 1500.0
    k: Parameter = 2.4e-5
    N: Parameter = 300.0
    A: Parameter = 0.05
    x0: tuple[float, ...] = (800.0, 0.04, 1.5)
    T: float = 20.0
    x_bounds: Bounds = ((0.0, 1600.0), (0.0, 100.0), (0.0, 100.0))
    u_bounds: Bounds = ((0.0, 1.0),)

    def field(self, x, u, t):
        (healthy, infected, virus), (u,) = x, u
        growth = self.r * healthy * (1 - (healthy + infected) / self.T_max)
        infection = u * self.k * healthy * virus
        return jnp.stack(
            [
                self.s / (1 + virus) - self.m_1 * healthy + growth - infection,
                infection - self.m_2 * infected,
                self.N * self.m_2 * infected - self.m_3 * virus,
            ]
        )

    def cost(self, x, u, t):
        return (1 - u[0]) ** 2 - self.A * x[0]


class MouldFungicide(AbstractControlProblem):
    """A mould x that grows to M, and a fungicide u. Chapter 6."""

    r: Parameter = 0.3
    M: Parameter = 10.0
    A: Parameter = 10.0
    x0: tuple[float, ...] = (1.0,)
    T: float = 5.0
    x_bounds: Bounds = ((0.0, 5.0),)
    u_bounds: Bounds = ((0.0, 5.0),)

    def field(self, x, u, t):
        return self.r * (self.M - x) - u * x

    def cost(self, x, u, t):
        return self.A * x[0] ** 2 + u[0] ** 2


class Bacteria(AbstractControlProblem):
    """A colony x, fed by a nutrient u whose by-product poisons it; its size counts at the end. Chapter 7.

    x = 0 is absorbing through the clip: a colony once dead has no gradient but that of the cost.
    """

    r: Parameter = 1.0
    A: Parameter = 1.0
    B: Parameter = 12.0
    C: Parameter = 1.0
    x0: tuple[float, ...] = (1.0,)
    T: float = 1.0
    x_bounds: Bounds = ((0.0, 10.0),)
    u_bounds: Bounds = ((0.0, 2.0),)

    def field(self, x, u, t):
        return self.r * x + self.A * u * x - self.B * u**2 * jnp.exp(-x)

    def cost(self, x, u, t):
        return u[0] ** 2

    def final_cost(self, x):
        return -self.C * x[0]


class PredatorPrey(AbstractControlProblem):
    """Prey, predators and the pesticide u used so far, which kills both. Chapter 22, without its constraint on the total.

    As configured the clip extinguishes the prey at the second step whatever is done, so that nothing is left to control.
    """

    d_1: Parameter = 0.1
    d_2: Parameter = 0.1
    A: Parameter = 1.0
    x0: tuple[float, ...] = (10.0, 1.0, 0.0)
    T: float = 100.0
    x_bounds: Bounds = ((0.0, 11.0), (0.0, 11.0), (0.0, 5.0))
    u_bounds: Bounds = ((0.0, 1.0),)

    def field(self, x, u, t):
        (prey, predators, _), (u,) = x, u
        return jnp.stack([(1 - predators) * prey - self.d_1 * prey * u, (prey - 1) * predators - self.d_2 * predators * u, u])

    def cost(self, x, u, t):
        return self.A / 2 * u[0] ** 2

    def final_cost(self, x):
        return x[0]


class Glucose(AbstractControlProblem):
    """Blood glucose and net hormone; insulin u keeps glucose at l. Chapter 16. Its return varies by 0.03 % only."""

    a: Parameter = 1.0
    b: Parameter = 1.0
    c: Parameter = 1.0
    A: Parameter = 2.0
    l: Parameter = 0.4
    x0: tuple[float, ...] = (0.75, 0.0)
    T: float = 0.2
    x_bounds: Bounds = ((0.0, 1.0), (0.0, 1.0))
    u_bounds: Bounds = ((0.0, 0.01),)

    def field(self, x, u, t):
        (glucose, hormone), (u,) = x, u
        return jnp.stack([-self.a * glucose - self.b * hormone, -self.c * hormone + u])

    def cost(self, x, u, t):
        return 1e5 * (self.A * (x[0] - self.l) ** 2 + u[0] ** 2)


class Harvest(AbstractControlProblem):
    """Fish x whose mass each grows as k t / (t+1), harvested at the rate u. Chapter 11."""

    A: Parameter = 5.0
    k: Parameter = 10.0
    m: Parameter = 0.2
    x0: tuple[float, ...] = (0.4,)
    T: float = 10.0
    x_bounds: Bounds = (UNBOUNDED,)
    u_bounds: Bounds = ((0.0, 1.0),)

    def field(self, x, u, t):
        return -(self.m + u) * x

    def cost(self, x, u, t):
        return u[0] ** 2 - self.A * (self.k * t / (t + 1)) * x[0] * u[0]


class TimberHarvest(AbstractControlProblem):
    """A forest x; the share u of the income is reinvested, the rest is gain, discounted at r. Chapter 18. Best is bang-bang."""

    r: Parameter = 0.0
    k: Parameter = 1.0
    x0: tuple[float, ...] = (100.0,)
    T: float = 5.0
    x_bounds: Bounds = ((0.0, 20_000.0),)
    u_bounds: Bounds = ((0.0, 1.0),)

    def field(self, x, u, t):
        return self.k * x * u

    def cost(self, x, u, t):
        return -jnp.exp(-self.r * t) * x[0] * (1 - u[0])


class InvasivePlant(AbstractControlProblem):
    """Five foci of a weed, each cut back by its own u; what is left at the end counts. Chapter 24.

    The book's problem is a yearly map; the field is that map minus the identity, the same at T = N only.
    """

    B: Parameter = 1.0
    k: Parameter = 1.0
    eps: Parameter = 0.01
    x0: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 10.0)
    T: float = 10.0
    x_bounds: Bounds = (UNBOUNDED,) * 5
    u_bounds: Bounds = ((0.0, 1.0),) * 5

    def field(self, x, u, t):
        return (x + self.k * x / (self.eps + x)) * (1 - u) - x

    def cost(self, x, u, t):
        return self.B * jnp.sum(u**2)

    def final_cost(self, x):
        return jnp.sum(x)


class Epidemic(AbstractControlProblem):
    """Susceptible, exposed, infectious and all people; u vaccinates. Chapter 13. As configured it dies out by itself."""

    A: Parameter = 0.1
    b: Parameter = 0.525
    d: Parameter = 0.5
    c: Parameter = 1e-4
    e: Parameter = 0.5
    g: Parameter = 0.1
    a: Parameter = 0.2
    x0: tuple[float, ...] = (1000.0, 100.0, 50.0, 1165.0)
    T: float = 20.0
    x_bounds: Bounds = (UNBOUNDED,) * 4
    u_bounds: Bounds = ((0.0, 0.9),)

    def field(self, x, u, t):
        (S, E, I, people), (u,) = x, u
        infection = self.c * S * I
        return jnp.stack(
            [
                self.b * people - self.d * S - infection - u * S,
                infection - (self.e + self.d) * E,
                self.e * E - (self.g + self.a + self.d) * I,
                (self.b - self.d) * people - self.a * I,
            ]
        )

    def cost(self, x, u, t):
        return self.A * x[2] + u[0] ** 2


MYRIAD: tuple[type[AbstractControlProblem], ...] = (
    CancerTreatment,
    BearPopulations,
    Bioreactor,
    HIVTreatment,
    MouldFungicide,
    Bacteria,
    PredatorPrey,
    Glucose,
    Harvest,
    TimberHarvest,
    InvasivePlant,
    Epidemic,
)
