# The settings of Open MPI that dppo needs. Jobs and the mpirun of .venv source this file; startup.py reads it for runs
# that start without them. A variable that you have set stays as it is. Other MPIs ignore these.

# with HAN an Allreduce during a rank's death may return wrong numbers
export OMPI_MCA_coll="${OMPI_MCA_coll-^han}"
# one-sided communication is not used, and its UCX component complains where there is no UCX
export OMPI_MCA_osc="${OMPI_MCA_osc-^ucx}"
# as root, as in every container
export OMPI_ALLOW_RUN_AS_ROOT="${OMPI_ALLOW_RUN_AS_ROOT-1}"
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM-1}"
# more ranks than cores, as on a laptop. Without "slot" (and with --oversubscribe) all ranks come to the first node
export PRTE_MCA_rmaps_default_mapping_policy="${PRTE_MCA_rmaps_default_mapping_policy-slot:oversubscribe}"
# jobs that share a node would all be bound to its first cores; Slurm keeps ranks on the cores of their job
export PRTE_MCA_hwloc_default_binding_policy="${PRTE_MCA_hwloc_default_binding_policy-none}"
# silences a complaint where Slurm has munge and the package from PyPI does not
export PMIX_MCA_psec="${PMIX_MCA_psec-native}"
# under srun: Slurm's other fences wait for no other node where there are few; a late node's ranks crash (ompi #12495)
export SLURM_PMIX_FENCE="${SLURM_PMIX_FENCE-ring}"
# a node that stops answering ends the job after 60 + 3 * 10 s (Open MPI: 8 minutes), and its processes end as well
export PRTE_MCA_oob_tcp_keepalive_time="${PRTE_MCA_oob_tcp_keepalive_time-60}"
export PRTE_MCA_oob_tcp_keepalive_intvl="${PRTE_MCA_oob_tcp_keepalive_intvl-10}"
export PRTE_MCA_oob_tcp_keepalive_probes="${PRTE_MCA_oob_tcp_keepalive_probes-3}"
# Open MPI does not start without a home. It reads settings there: never a folder that others may write to
if [ -z "${HOME-}" ]; then
    HOME=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f6)
    export HOME="${HOME:-/}"
fi
