"""The twelve optimal control problems in the experiments of Ma et al. (2024). Make tasks of them with `Discretised`.

The equations are from Lenhart & Workman, *Optimal Control Applied to Biological Models* (2007), collected in *Myriad* (Howe et al.,
2022). Parameters are those of the experiments. Quantities are dimensionless unless a docstring gives a unit.
"""

import math

import jax.numpy as jnp

from ._control import AbstractControlProblem, Bounds
from ._ode import Parameter, parameter

UNBOUNDED = (-math.inf, math.inf)


class CancerTreatment(AbstractControlProblem):
    """Shrink a tumour that grows by Gompertz's law with a drug (Lenhart & Workman, ch. 10).

        x' = r x ln(1 / x) - delta u x,    cost a x^2 + u^2

    - State: x, the density of the tumour relative to its maximum; starts at 0.975.
    - Control: u in [0, 2], the strength of the drug.
    """

    r: Parameter = parameter(0.3)
    a: Parameter = parameter(3.0)
    delta: Parameter = parameter(0.45)
    x0: tuple[float, ...] = (0.975,)
    T: Parameter = parameter(20.0)
    x_bounds: Bounds = ((1e-3, 1.0),)
    u_bounds: Bounds = ((0.0, 2.0),)

    def field(self, x, u, t):
        return self.r * x * jnp.log(1 / x) - self.delta * u * x

    def cost(self, x, u, t):
        return self.a * x[0] ** 2 + u[0] ** 2


class BearPopulations(AbstractControlProblem):
    """Keep bears from leaving a park and the forest around it for the cities, by harvesting (Lenhart & Workman, ch. 15).

        P' = r P - r/K P^2 + m_f r/K (1 - P/K) F^2 - u_p P
        F' = r F - r/K F^2 + m_p r/K (1 - F/K) P^2 - u_f F
        O' = r/K ((1 - m_p) P^2 + (1 - m_f) F^2) + r/K^2 (m_f P F^2 + m_p P^2 F)
        cost O + c_p u_p^2 + c_f u_f^2

    Harvesting in the park costs so much that almost all of the return depends on not doing it.

    - State: (P, F, O), the densities of bears in the park, in the forest and outside; starts at (0.4, 0.2, 0).
    - Control: (u_p, u_f) in [0, 0.2], the rates of harvest in the park and in the forest.
    """

    r: Parameter = parameter(0.1)
    K: Parameter = parameter(0.75)
    m_p: Parameter = parameter(0.5)
    m_f: Parameter = parameter(0.5)
    c_p: Parameter = parameter(10_000.0)
    c_f: Parameter = parameter(10.0)
    x0: tuple[float, ...] = (0.4, 0.2, 0.0)
    T: Parameter = parameter(25.0)
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
    """Feed bacteria that degrade a contaminant (Lenhart & Workman, ch. 19).

        x' = G u x - D x^2,    cost u - K x

    With the default parameters u = 0 is optimal to 1e-6. With K = 3 the optimal control switches between its bounds.

    - State: x, the concentration of bacteria; starts at 0.5.
    - Control: u in [0, 1], the supply of nutrients.
    """

    K: Parameter = parameter(2.0)
    G: Parameter = parameter(1.0)
    D: Parameter = parameter(1.0)
    x0: tuple[float, ...] = (0.5,)
    T: Parameter = parameter(2.0)
    x_bounds: Bounds = ((0.0, 1.0),)
    u_bounds: Bounds = ((0.0, 1.0),)

    def field(self, x, u, t):
        return self.G * u * x - self.D * x**2

    def cost(self, x, u, t):
        return u[0] - self.K * x[0]


class HIVTreatment(AbstractControlProblem):
    """Treat HIV with chemotherapy (Lenhart & Workman, ch. 14).

        x' = s / (1 + v) - m_1 x + r x (1 - (x + y) / T_max) - u k x v
        y' = u k x v - m_2 y
        v' = N m_2 y - m_3 v
        cost (1 - u)^2 - A x

    Explicit Euler steps longer than 2 / m_3 = 0.45 days are unstable, so use a horizon above 44.

    - State: (x, y, v), the concentrations of healthy cells, infected cells and free virus; starts at (800, 0.04, 1.5) per mm^3.
    - Control: u in [0, 1]. 0 is full chemotherapy, 1 is none.
    """

    s: Parameter = parameter(10.0)
    m_1: Parameter = parameter(0.02)
    m_2: Parameter = parameter(0.5)
    m_3: Parameter = parameter(4.4)
    r: Parameter = parameter(0.03)
    T_max: Parameter = parameter(1500.0)
    k: Parameter = parameter(2.4e-5)
    N: Parameter = parameter(300.0)
    A: Parameter = parameter(0.05)
    x0: tuple[float, ...] = (800.0, 0.04, 1.5)
    T: Parameter = parameter(20.0)
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
    """Suppress a mould with a fungicide (Lenhart & Workman, ch. 6).

        x' = r (M - x) - u x,    cost A x^2 + u^2

    - State: x, the concentration of mould; starts at 1.
    - Control: u in [0, 5], the amount of fungicide.
    """

    r: Parameter = parameter(0.3)
    M: Parameter = parameter(10.0)
    A: Parameter = parameter(10.0)
    x0: tuple[float, ...] = (1.0,)
    T: Parameter = parameter(5.0)
    x_bounds: Bounds = ((0.0, 5.0),)
    u_bounds: Bounds = ((0.0, 5.0),)

    def field(self, x, u, t):
        return self.r * (self.M - x) - u * x

    def cost(self, x, u, t):
        return self.A * x[0] ** 2 + u[0] ** 2


class Bacteria(AbstractControlProblem):
    """Grow bacteria with a nutrient whose by-product poisons them (Lenhart & Workman, ch. 7).

        x' = r x + A u x - B u^2 exp(-x),    cost u^2,    final cost -C x

    Clipping at 0 makes x = 0 absorbing: once the colony is dead, only the cost of u has a gradient. Random actions kill it.

    - State: x, the concentration of bacteria; starts at 1.
    - Control: u in [0, 2], the amount of nutrient.
    """

    r: Parameter = parameter(1.0)
    A: Parameter = parameter(1.0)
    B: Parameter = parameter(12.0)
    C: Parameter = parameter(1.0)
    x0: tuple[float, ...] = (1.0,)
    T: Parameter = parameter(1.0)
    x_bounds: Bounds = ((0.0, 10.0),)
    u_bounds: Bounds = ((0.0, 2.0),)

    def field(self, x, u, t):
        return self.r * x + self.A * u * x - self.B * u**2 * jnp.exp(-x)

    def cost(self, x, u, t):
        return u[0] ** 2

    def final_cost(self, x):
        return -self.C * x[0]


class PredatorPrey(AbstractControlProblem):
    """Reduce a pest, the prey, with a pesticide that also kills its predator (Lenhart & Workman, ch. 22).

        x' = (1 - y) x - d_1 x u,    y' = (x - 1) y - d_2 y u,    z' = u
        cost A/2 u^2,    final cost x

    The book's constraint on the total z(T) is left out. At the default T and 20 to 200 steps, clipping sets the prey to 0 at the
    second step for all actions, so u = 0 is optimal.

    - State: (x, y, z), the prey, the predators and the pesticide used so far; starts at (10, 1, 0).
    - Control: u in [0, 1], the rate of pesticide.
    """

    d_1: Parameter = parameter(0.1)
    d_2: Parameter = parameter(0.1)
    A: Parameter = parameter(1.0)
    x0: tuple[float, ...] = (10.0, 1.0, 0.0)
    T: Parameter = parameter(100.0)
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
    """Bring blood glucose to the level l with insulin (Lenhart & Workman, ch. 16).

        x' = -a x - b y,    y' = -c y + u,    cost 1e5 (A (x - l)^2 + u^2)

    The returns of the optimal and of random actions differ by 0.03 % only, so compare returns in float64.

    - State: (x, y), the blood glucose and the net hormone; starts at (0.75, 0).
    - Control: u in [0, 0.01], the rate of insulin.
    """

    a: Parameter = parameter(1.0)
    b: Parameter = parameter(1.0)
    c: Parameter = parameter(1.0)
    A: Parameter = parameter(2.0)
    l: Parameter = parameter(0.4)
    x0: tuple[float, ...] = (0.75, 0.0)
    T: Parameter = parameter(0.2)
    x_bounds: Bounds = ((0.0, 1.0), (0.0, 1.0))
    u_bounds: Bounds = ((0.0, 0.01),)

    def field(self, x, u, t):
        (glucose, hormone), (u,) = x, u
        return jnp.stack([-self.a * glucose - self.b * hormone, -self.c * hormone + u])

    def cost(self, x, u, t):
        return 1e5 * (self.A * (x[0] - self.l) ** 2 + u[0] ** 2)


class Harvest(AbstractControlProblem):
    """Harvest fish that gain mass with time (Lenhart & Workman, ch. 11).

        x' = -(m + u) x,    cost u^2 - A k t / (t + 1) x u

    - State: x, the number of fish; starts at 0.4.
    - Control: u in [0, 1], the rate of harvest.
    """

    A: Parameter = parameter(5.0)
    k: Parameter = parameter(10.0)
    m: Parameter = parameter(0.2)
    x0: tuple[float, ...] = (0.4,)
    T: Parameter = parameter(10.0)
    x_bounds: Bounds = (UNBOUNDED,)
    u_bounds: Bounds = ((0.0, 1.0),)

    def field(self, x, u, t):
        return -(self.m + u) * x

    def cost(self, x, u, t):
        return u[0] ** 2 - self.A * (self.k * t / (t + 1)) * x[0] * u[0]


class TimberHarvest(AbstractControlProblem):
    """Reinvest the income of a forest or take it as profit (Lenhart & Workman, ch. 18).

        x' = k x u,    cost -exp(-r t) x (1 - u)

    The optimal control reinvests everything at first and nothing after a switch.

    - State: x, the rate of timber production; starts at 100.
    - Control: u in [0, 1], the share of the income that is reinvested.
    """

    r: Parameter = parameter(0.0)
    k: Parameter = parameter(1.0)
    x0: tuple[float, ...] = (100.0,)
    T: Parameter = parameter(5.0)
    x_bounds: Bounds = ((0.0, 20_000.0),)
    u_bounds: Bounds = ((0.0, 1.0),)

    def field(self, x, u, t):
        return self.k * x * u

    def cost(self, x, u, t):
        return -jnp.exp(-self.r * t) * x[0] * (1 - u[0])


class InvasivePlant(AbstractControlProblem):
    """Cut back five foci of an invasive plant (Lenhart & Workman, ch. 24).

        x_j' = (x_j + k x_j / (eps + x_j)) (1 - u_j) - x_j,    cost B sum_j u_j^2,    final cost sum_j x_j

    The book states a yearly map; the field is that map minus the identity, so the two agree only for a horizon of T = 10 steps.

    - State: x, the radii of the five foci; starts at (0.5, 1, 1.5, 2, 10).
    - Control: u_j in [0, 1], the share of focus j that is removed.
    """

    B: Parameter = parameter(1.0)
    k: Parameter = parameter(1.0)
    eps: Parameter = parameter(0.01)
    x0: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 10.0)
    T: Parameter = parameter(10.0)
    x_bounds: Bounds = (UNBOUNDED,) * 5
    u_bounds: Bounds = ((0.0, 1.0),) * 5

    def field(self, x, u, t):
        return (x + self.k * x / (self.eps + x)) * (1 - u) - x

    def cost(self, x, u, t):
        return self.B * jnp.sum(u**2)

    def final_cost(self, x):
        return jnp.sum(x)


class Epidemic(AbstractControlProblem):
    """Vaccinate against an epidemic (Lenhart & Workman, ch. 13).

        S' = b N - d S - c S I - u S
        E' = c S I - (e + d) E
        I' = e E - (g + a + d) I
        N' = (b - d) N - a I
        cost A I + u^2

    With the default parameters the epidemic dies out without vaccination, so u = 0 is nearly optimal; raise c to change this.

    - State: (S, E, I, N), numbers of susceptible, exposed, infectious and all people; starts at (1000, 100, 50, 1165).
    - Control: u in [0, 0.9], the rate of vaccination.
    """

    A: Parameter = parameter(0.1)
    b: Parameter = parameter(0.525)
    d: Parameter = parameter(0.5)
    c: Parameter = parameter(1e-4)
    e: Parameter = parameter(0.5)
    g: Parameter = parameter(0.1)
    a: Parameter = parameter(0.2)
    x0: tuple[float, ...] = (1000.0, 100.0, 50.0, 1165.0)
    T: Parameter = parameter(20.0)
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
