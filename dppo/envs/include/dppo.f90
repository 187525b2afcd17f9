! dppo.h for Fortran 2008: the same calls in the same order, which dppo.h describes. Compile it with dppo_fortran.c:
!
!     I=$(python -m dppo.job --include)
!     mpicc -c $I/dppo_fortran.c
!     mpif90 -o simulator $I/dppo.f90 simulator.f90 dppo_fortran.o
!
! dppo_begin gives a communicator for `use mpi` and mpif.h. For `use mpi_f08` it is comm%mpi_val.
module dppo
  use, intrinsic :: iso_c_binding, only: c_char, c_double, c_int, c_int64_t, c_null_char
  implicit none
  private
  public :: dppo_begin, dppo_declare, dppo_wait_reset, dppo_send_state, dppo_receive_action, dppo_path, dppo_answer
  public :: dppo_end, dppo_mpi_init

  integer(c_int), parameter, public :: DPPO_END_OF_RUN = 0, DPPO_RESET = 1, DPPO_ACTION = 2, DPPO_SAVE = 3, DPPO_LOAD = 4
  integer(c_int), parameter, public :: DPPO_RUNNING = 0, DPPO_TERMINATED = 1, DPPO_TRUNCATED = 2
  integer(c_int), parameter, public :: DPPO_CANNOT_SAVE = 0, DPPO_CAN_SAVE = 1

  interface
    ! Meets dppo. comm: the communicator of this rank's group, in place of MPI_COMM_WORLD; number: of the group, from 0.
    subroutine dppo_begin(comm, number) bind(c, name="dppo_f_begin")
      import :: c_int
      integer(c_int), intent(out) :: comm, number
    end subroutine dppo_begin

    subroutine declare_in_c(name, num_observations, observation_low, observation_high, num_actions, action_low, &
                            action_high, can_save) bind(c, name="dppo_f_declare")
      import :: c_char, c_double, c_int
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: num_observations, num_actions, can_save
      real(c_double), intent(in) :: observation_low(*), observation_high(*), action_low(*), action_high(*)
    end subroutine declare_in_c

    ! Waits for the next episode: DPPO_RESET with its seed, DPPO_LOAD, or DPPO_END_OF_RUN.
    function dppo_wait_reset(seed) result(next) bind(c, name="dppo_f_wait_reset")
      import :: c_int, c_int64_t
      integer(c_int64_t), intent(inout) :: seed
      integer(c_int) :: next
    end function dppo_wait_reset

    ! Sends the state after a reset or an action. status: DPPO_RUNNING, DPPO_TERMINATED or DPPO_TRUNCATED.
    subroutine dppo_send_state(observation, reward, status) bind(c, name="dppo_f_send_state")
      import :: c_double, c_int
      real(c_double), intent(in) :: observation(*)
      real(c_double), value :: reward
      integer(c_int), value :: status
    end subroutine dppo_send_state

    ! Waits for the next action: DPPO_ACTION with the action, DPPO_SAVE, DPPO_LOAD, or DPPO_RESET or DPPO_END_OF_RUN: then
    ! the episode is over, and the next call is dppo_wait_reset.
    function dppo_receive_action(action) result(next) bind(c, name="dppo_f_receive_action")
      import :: c_double, c_int
      real(c_double), intent(inout) :: action(*)
      integer(c_int) :: next
    end function dppo_receive_action

    function path_in_c(path, size) result(length) bind(c, name="dppo_f_path")
      import :: c_char, c_int
      character(kind=c_char), intent(out) :: path(*)
      integer(c_int), value :: size
      integer(c_int) :: length
    end function path_in_c

    ! Tells, after DPPO_SAVE and DPPO_LOAD, whether this rank's part of the state was written or read: 1 or 0.
    subroutine dppo_answer(is_done) bind(c, name="dppo_f_answer")
      import :: c_int
      integer(c_int), value :: is_done
    end subroutine dppo_answer

    ! The last call, in place of MPI_Finalize. It may end the process.
    subroutine dppo_end() bind(c, name="dppo_f_end")
    end subroutine dppo_end

    ! MPI_Init, for programs that use no Fortran module of MPI.
    subroutine dppo_mpi_init() bind(c, name="dppo_f_init")
    end subroutine dppo_mpi_init
  end interface

contains

  ! Tells dppo what the environment is; the sizes are those of the bounds.
  subroutine dppo_declare(name, observation_low, observation_high, action_low, action_high, can_save)
    character(len=*), intent(in) :: name
    real(c_double), intent(in) :: observation_low(:), observation_high(:), action_low(:), action_high(:)
    integer(c_int), intent(in) :: can_save

    if (size(observation_low) /= size(observation_high) .or. size(action_low) /= size(action_high)) &
      error stop "dppo_declare: lower and upper bounds must be of one size"
    call declare_in_c(trim(name)//c_null_char, size(observation_low), observation_low, observation_high, &
                      size(action_low), action_low, action_high, can_save)
  end subroutine dppo_declare

  ! Returns the folder of a state, after DPPO_SAVE or DPPO_LOAD.
  function dppo_path() result(path)
    character(len=:), allocatable :: path
    character(kind=c_char, len=1) :: text(4096)
    integer :: length, i

    length = path_in_c(text, size(text))
    allocate (character(len=length) :: path)
    do i = 1, length
      path(i:i) = text(i)
    end do
  end function dppo_path

end module dppo
