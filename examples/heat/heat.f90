! The heat-control problem of heat.py as a simulator in Fortran that owns its main loop, coupled with dppo by dppo.f90.
program heat
  use, intrinsic :: iso_c_binding, only: c_double, c_int, c_int64_t
  use dppo
  implicit none

  interface ! of heat_mpi.c
    subroutine heat_shape(comm, rank, size) bind(c)
      import :: c_int
      integer(c_int), value :: comm
      integer(c_int), intent(out) :: rank, size
    end subroutine heat_shape

    subroutine heat_sendrecv(comm, sent, dest, received, source, count) bind(c)
      import :: c_double, c_int
      integer(c_int), value :: comm, dest, source, count
      real(c_double), intent(in) :: sent(*)
      real(c_double), intent(inout) :: received(*)
    end subroutine heat_sendrecv

    subroutine heat_sum(comm, values, count) bind(c)
      import :: c_double, c_int
      integer(c_int), value :: comm, count
      real(c_double), intent(inout) :: values(*)
    end subroutine heat_sum
  end interface

  integer, parameter :: SIDE = 32, STEPS = 60, SUBSTEPS = 8, WIDTH = 4, NUM_SENSORS = 9, NUM_HEATERS = 4
  real(c_double), parameter :: DIFFUSION = 0.2d0, LOSS = 0.004d0, POWER = 0.1d0, ERROR_WEIGHT = 2.0d0, COST = 0.1d0
  integer, parameter :: SENSORS(3) = [5, 15, 26], HEATERS(2) = [6, 22] ! counted from 0, as in heat.py

  ! u(j, i): column j of row i; row 1 is this rank's first, and there is a halo of one cell on each side
  real(c_double), allocatable :: u(:, :)
  real(c_double) :: air, observation(NUM_SENSORS), action(NUM_HEATERS), bound(NUM_SENSORS), one(NUM_HEATERS), error
  integer(c_int) :: comm, number, rank, num_ranks, what
  integer(c_int64_t) :: seed, random_state
  integer :: first, last, rows, step, status

  call dppo_mpi_init()
  call dppo_begin(comm, number)
  call heat_shape(comm, rank, num_ranks)
  first = rank*SIDE/num_ranks
  last = (rank + 1)*SIDE/num_ranks - 1
  rows = last - first + 1
  allocate (u(0:SIDE + 1, 0:rows + 1))
  bound = 1.0d300
  bound = bound*1.0d300 ! infinite
  one = 1.0d0
  call dppo_declare("heat", -bound, bound, -one, one, DPPO_CAN_SAVE)
  seed = 0
  do
    what = dppo_wait_reset(seed)
    if (what == DPPO_END_OF_RUN) exit
    if (what == DPPO_LOAD) then
      call dppo_answer(transfer_state(.false.))
    else
      call begin_episode()
      call measure()
      call dppo_send_state(observation, 0.0d0, DPPO_RUNNING)
    end if
    do
      what = dppo_receive_action(action)
      if (what == DPPO_SAVE .or. what == DPPO_LOAD) then
        call dppo_answer(transfer_state(what == DPPO_SAVE))
      else if (what == DPPO_ACTION) then
        action = max(-1.0d0, min(1.0d0, action))
        call advance()
        call measure()
        status = DPPO_RUNNING
        if (step >= STEPS) status = DPPO_TRUNCATED
        call dppo_send_state(observation, 1.0d0 - ERROR_WEIGHT*error - COST*sum(action*action)/NUM_HEATERS, status)
      else
        exit
      end if
    end do
  end do
  call dppo_end()

contains

  function uniform() result(x)
    real(c_double) :: x
    random_state = mod(16807_c_int64_t*random_state, 2147483647_c_int64_t)
    x = real(random_state, c_double)/2147483647.0d0
  end function uniform

  subroutine begin_episode()
    real(c_double), parameter :: PI = acos(-1.0d0)
    real(c_double) :: amount
    integer :: i, j, k, l
    random_state = 1 + mod(seed, 2147483646_c_int64_t)
    do k = 1, 8
      amount = uniform()
    end do
    u = 0.0d0
    step = 0
    air = -1.0d0 - uniform()
    do k = 0, 2
      do l = 0, 2
        amount = uniform() - 0.5d0
        do i = first, last
          do j = 0, SIDE - 1
            u(1 + j, 1 + i - first) = u(1 + j, 1 + i - first) &
                                      + amount*cos(PI*k*(i + 0.5d0)/SIDE)*cos(PI*l*(j + 0.5d0)/SIDE)
          end do
        end do
      end do
    end do
  end subroutine begin_episode

  ! Fills the halo: from the neighbours and, at the plate's edges, from the cells beside them.
  subroutine exchange()
    integer :: up, down
    up = rank - 1
    down = rank + 1
    if (down == num_ranks) down = -1
    u(0, :) = u(1, :)
    u(SIDE + 1, :) = u(SIDE, :)
    u(:, 0) = u(:, 1)
    u(:, rows + 1) = u(:, rows)
    call heat_sendrecv(comm, u(:, 1), up, u(:, rows + 1), down, SIDE + 2)
    call heat_sendrecv(comm, u(:, rows), down, u(:, 0), up, SIDE + 2)
  end subroutine exchange

  subroutine advance()
    real(c_double) :: heat_of(SIDE, rows), next(SIDE, rows), around
    integer :: n, i, j, k, row, column
    heat_of = 0.0d0
    do n = 0, NUM_HEATERS - 1
      row = HEATERS(1 + n/2)
      column = HEATERS(1 + mod(n, 2))
      do i = max(row, first), min(row + WIDTH - 1, last)
        heat_of(column + 1:column + WIDTH, 1 + i - first) = POWER*action(n + 1)
      end do
    end do
    do k = 1, SUBSTEPS
      call exchange()
      do i = 1, rows
        do j = 1, SIDE
          around = u(j, i - 1) + u(j, i + 1) + u(j - 1, i) + u(j + 1, i) - 4.0d0*u(j, i)
          next(j, i) = u(j, i) + (DIFFUSION*around + LOSS*(air - u(j, i)) + heat_of(j, i))
        end do
      end do
      u(1:SIDE, 1:rows) = next
    end do
    step = step + 1
  end subroutine advance

  ! Reads the sensors and the mean square of all temperatures. Each rank adds up its rows; the rows are added in their
  ! order, so that the sum is the same for any number of ranks.
  subroutine measure()
    real(c_double) :: values(NUM_SENSORS + SIDE)
    integer :: n, i, j, row
    values = 0.0d0
    do n = 0, NUM_SENSORS - 1
      row = SENSORS(1 + n/3)
      if (first <= row .and. row <= last) values(n + 1) = u(1 + SENSORS(1 + mod(n, 3)), 1 + row - first)
    end do
    do i = first, last
      do j = 1, SIDE
        values(NUM_SENSORS + 1 + i) = values(NUM_SENSORS + 1 + i) + u(j, 1 + i - first)**2
      end do
    end do
    call heat_sum(comm, values, NUM_SENSORS + SIDE)
    observation = values(:NUM_SENSORS)
    error = 0.0d0
    do i = 1, SIDE
      error = error + values(NUM_SENSORS + i)
    end do
    error = error/(SIDE*SIDE)
  end subroutine measure

  ! Writes or reads this rank's part of the state. Returns 1 if that went well.
  function transfer_state(is_save) result(is_done)
    logical, intent(in) :: is_save
    integer(c_int) :: is_done
    character(len=12) :: own
    integer :: unit, failed
    write (own, "(i0)") rank
    is_done = 0
    open (newunit=unit, file=dppo_path()//"/rank_"//trim(own)//".bin", form="unformatted", iostat=failed)
    if (failed /= 0) return
    if (is_save) then
      write (unit, iostat=failed) air, step, u
    else
      read (unit, iostat=failed) air, step, u
    end if
    if (failed == 0) is_done = 1
    close (unit)
  end function transfer_state

end program heat
